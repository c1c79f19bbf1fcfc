#include "ops/cumsum_kernels.h"

#include <algorithm>
#include <cstdint>

#include "core/parallel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/cumsum.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "core/simd-inl.h"
#include "ops/cpu/row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE {
namespace {

/// Columns whose running sums one thread holds at once, in the first-level cache: wide, to read long pieces
/// of rows, unless that leaves too few blocks of columns to share out.
constexpr int64_t kMostColumns = 1024, kFewColumns = 256;
constexpr int64_t kManySequences = 16;

/// Rows between the one that is read and the one that is prefetched: the pieces of rows are too short and too
/// far apart for the hardware to see a stream.
constexpr int64_t kPrefetchRows = 8;

/// One row of columns: sum += x, y = sum. The running sums are f64 for all data, so that the error does
/// not grow with the length. `later` is how far ahead to prefetch.
template <class T>
HWY_INLINE void add_row(const T* x, int64_t cols, int64_t later, double* sum, T* y) {
  const hn::ScalableTag<double> d64;
  for_each_vector(d64, 0, cols, [=](int64_t i, int64_t n) HWY_ATTR {
    prefetch_far(x + later + i);
    prefetch_far(y + later + i);
    auto total = hn::LoadU(d64, sum + i);
    if constexpr (sizeof(T) == 8) {
      total = hn::Add(total, load_lanes(d64, x + i, n));
      store_lanes(d64, total, y + i, n);
    } else {
      const hn::Rebind<float, decltype(d64)> d32;
      total = hn::Add(total, hn::PromoteTo(d64, load_lanes(d32, x + i, n)));
      store_lanes(d32, hn::DemoteTo(d32, total), y + i, n);
    }
    hn::StoreU(total, d64, sum + i);
  });
}

template <class T>
void cumsum_columns(const Cumsum& args) {
  const int64_t columns = args.outer >= kManySequences ? kMostColumns : kFewColumns;
  const int64_t blocks = (args.inner + columns - 1) / columns;
  const int64_t grain = rows_per_thread(args.length * std::min(columns, args.inner));
  parallel_for(args.outer * blocks, grain, [&](int64_t begin, int64_t end) {
    HWY_ALIGN double sum[kMostColumns];
    for (int64_t block = begin; block < end; ++block) {
      const int64_t o = block / blocks, first = block % blocks * columns;
      const int64_t cols = std::min(columns, args.inner - first);
      const int64_t step = args.reverse ? -args.inner : args.inner;
      int64_t offset = (o * args.length + (args.reverse ? args.length - 1 : 0)) * args.inner + first;
      std::fill_n(sum, kMostColumns, 0.0);
      for (int64_t r = 0; r < args.length; ++r, offset += step) {
        const int64_t later = std::min(kPrefetchRows, args.length - 1 - r) * step;
        add_row(static_cast<const T*>(args.x) + offset, cols, later, sum, static_cast<T*>(args.y) + offset);
      }
    }
  });
}

template <class T>
void cumsum_rows(const Cumsum& args) {
  parallel_for(args.outer, rows_per_thread(args.length), [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      const T* x = static_cast<const T*>(args.x) + o * args.length;
      T* y = static_cast<T*>(args.y) + o * args.length;
      double sum = 0;
      for (int64_t r = 0; r < args.length; ++r) {
        const int64_t i = args.reverse ? args.length - 1 - r : r;
        sum += static_cast<Compute<T>>(x[i]);
        y[i] = static_cast<T>(static_cast<Compute<T>>(sum));
      }
    }
  });
}

void cumsum_kernel(const Cumsum& args) {
  dispatch_f32_f64_bf16(args.dtype, "cumsum", [&]<class T>() {
    if (args.inner == 1) {
      cumsum_rows<T>(args);
    } else {
      cumsum_columns<T>(args);
    }
  });
}

}  // namespace
}  // namespace elwise::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace elwise::cpu {

HWY_EXPORT(cumsum_kernel);

void cumsum(const Cumsum& args) {
  HWY_DYNAMIC_DISPATCH(cumsum_kernel)(args);
}

}  // namespace elwise::cpu
#endif
