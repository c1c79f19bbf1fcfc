#include "ops/reduce_kernels.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "core/parallel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/reduce.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "core/simd-inl.h"
#include "ops/cpu/row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE {
namespace {

/// Columns that are summed at once: their sums stay in the first-level cache.
constexpr int64_t kColumns = 512;
/// From this many independent results on, each is computed by one thread; fewer share their rows out.
constexpr int64_t kManyResults = 16;

/// sum[j] += x[0, j] + ... + x[rows - 1, j], for rows 8 or 1 and j < cols.
template <int kRows, class T>
HWY_INLINE void add_rows(const T* x, int64_t stride, int64_t cols, Compute<T>* sum) {
  static_assert(kRows == 8 || kRows == 1);
  const hn::ScalableTag<Compute<T>> d;
  for_each_vector(d, 0, cols, [=](int64_t i, int64_t n) HWY_ATTR {
    const auto row = [=](int64_t r) HWY_ATTR { return load_lanes(d, x + r * stride + i, n); };
    auto v = row(0);
    if constexpr (kRows == 8) {
      const auto low = hn::Add(hn::Add(v, row(1)), hn::Add(row(2), row(3)));
      const auto high = hn::Add(hn::Add(row(4), row(5)), hn::Add(row(6), row(7)));
      v = hn::Add(low, high);
    }
    store_lanes(d, hn::Add(load_lanes(d, sum + i, n), v), sum + i, n);
  });
}

/// sum[j] = the sum of column j, for j < cols <= kColumns. Accurate for many rows: 8 at a time are added in
/// pairs, these in blocks of 256 rows, and then the blocks.
template <class T>
void sum_column_block(const T* x, int64_t stride, int64_t rows, int64_t cols, Compute<T>* sum) {
  constexpr int64_t kBlockRows = 256;
  Compute<T> block_sum[kColumns];
  std::fill_n(sum, cols, Compute<T>(0));
  for (int64_t block = 0; block < rows; block += kBlockRows) {
    const int64_t end = std::min(rows, block + kBlockRows);
    std::fill_n(block_sum, cols, Compute<T>(0));
    int64_t r = block;
    for (; r + 8 <= end; r += 8) add_rows<8>(x + r * stride, stride, cols, block_sum);
    for (; r < end; ++r) add_rows<1>(x + r * stride, stride, cols, block_sum);
    add_rows<1>(block_sum, 0, cols, sum);
  }
}

/// sum_column_block in parallel: the bounds of the chunks of rows depend on the shape only, and their sums
/// are added in order.
template <class T>
void parallel_sum_column_block(const T* x, int64_t stride, int64_t rows, int64_t cols, Compute<T>* sum) {
  constexpr int64_t kMostChunks = 64;
  const int64_t least_rows = std::max<int64_t>(64, kElementsPerThread / cols);
  const int64_t chunk = std::max(least_rows, (rows + kMostChunks - 1) / kMostChunks);
  const int64_t chunks = (rows + chunk - 1) / chunk;
  HWY_ALIGN Compute<T> sums[kMostChunks * kColumns];
  parallel_for(chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const int64_t first = c * chunk;
      sum_column_block(x + first * stride, stride, std::min(chunk, rows - first), cols, sums + c * kColumns);
    }
  });
  sum_column_block(sums, kColumns, chunks, cols, sum);
}

template <class T>
void sum_columns(const SumForward& args) {
  const hn::ScalableTag<Compute<T>> d;
  const T* x = static_cast<const T*>(args.x);
  T* y = static_cast<T*>(args.y);
  const int64_t blocks = (args.inner + kColumns - 1) / kColumns, results = args.outer * blocks;
  const auto with_block = [&](int64_t result, const auto& sum_block) HWY_ATTR {
    const int64_t o = result / blocks, first = result % blocks * kColumns;
    const int64_t cols = std::min(kColumns, args.inner - first);
    T* to = y + o * args.inner + first;
    Compute<T> sums[kColumns];
    sum_block(x + o * args.reduced * args.inner + first, args.inner, args.reduced, cols, sums);
    for_each_vector(d, 0, cols, [&](int64_t i, int64_t n) HWY_ATTR {
      store_lanes(d, load_lanes(d, sums + i, n), to + i, n);
    });
  };
  if (results >= kManyResults) {
    const int64_t grain = rows_per_thread(args.reduced * std::min(kColumns, args.inner));
    parallel_for(results, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) with_block(i, sum_column_block<T>);
    });
  } else {
    for (int64_t i = 0; i < results; ++i) with_block(i, parallel_sum_column_block<T>);
  }
}

template <class T>
void sum_rows(const SumForward& args) {
  const hn::ScalableTag<Compute<T>> d;
  const T* x = static_cast<const T*>(args.x);
  T* y = static_cast<T*>(args.y);
  if (args.outer >= kManyResults) {
    parallel_for(args.outer, rows_per_thread(args.reduced), [&](int64_t begin, int64_t end) HWY_ATTR {
      for (int64_t o = begin; o < end; ++o) {
        const T* row = x + o * args.reduced;
        const double sum = sum_terms(
            d, 0, args.reduced, [=](int64_t i, int64_t n) HWY_ATTR { return load_lanes(d, row + i, n); });
        y[o] = static_cast<T>(static_cast<Compute<T>>(sum));
      }
    });
    return;
  }
  for (int64_t o = 0; o < args.outer; ++o) {
    const T* row = x + o * args.reduced;
    const double sum = parallel_sum_terms(
        d, args.reduced, [=](int64_t i, int64_t n) HWY_ATTR { return load_lanes(d, row + i, n); });
    y[o] = static_cast<T>(static_cast<Compute<T>>(sum));
  }
}

void sum_forward_kernel(const SumForward& args) {
  dispatch_f32_f64_bf16(args.dtype, "sum_forward", [&]<class T>() {
    if (args.inner == 1) {
      sum_rows<T>(args);
    } else {
      sum_columns<T>(args);
    }
  });
}

/// The first place in [0, count) whose value is the largest; a NaN is larger than all.
template <class T>
int64_t first_largest(const T* x, int64_t count) {
  const hn::ScalableTag<Compute<T>> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto first = hn::Set(d, static_cast<Compute<T>>(x[0]));
  auto largest = first;
  auto unordered = hn::IsNaN(largest);
  for_each_vector(d, 0, count, [&](int64_t i, int64_t n) HWY_ATTR {
    auto v = load_lanes(d, x + i, n);
    if (n < lanes) v = hn::IfThenElse(hn::FirstN(d, static_cast<size_t>(n)), v, first);
    unordered = hn::Or(unordered, hn::IsNaN(v));
    largest = hn::Max(largest, v);
  });
  const bool has_nan = !hn::AllFalse(d, unordered);
  const Compute<T> value = ReduceMax(d, largest);
  const auto wanted = hn::Set(d, value);
  for (int64_t i = 0; i < count; i += lanes) {
    const int64_t n = std::min(lanes, count - i);
    const auto v = load_lanes(d, x + i, n);
    const auto found =
        hn::And(has_nan ? hn::IsNaN(v) : hn::Eq(v, wanted), hn::FirstN(d, static_cast<size_t>(n)));
    if (const intptr_t lane = hn::FindFirstTrue(d, found); lane >= 0) return i + lane;
  }
  return 0;
}

template <class T>
void max_rows(const MaxForward& args) {
  const T* x = static_cast<const T*>(args.x);
  T* y = static_cast<T*>(args.y);
  parallel_for(args.outer, rows_per_thread(args.reduced), [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o) {
      const T* row = x + o * args.reduced;
      args.index[o] = first_largest(row, args.reduced);
      y[o] = row[args.index[o]];
    }
  });
}

template <class T>
void max_columns(const MaxForward& args) {
  const int64_t blocks = (args.inner + kColumns - 1) / kColumns;
  const int64_t grain = rows_per_thread(args.reduced * std::min(kColumns, args.inner));
  parallel_for(args.outer * blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t o = block / blocks, first = block % blocks * kColumns;
      const int64_t cols = std::min(kColumns, args.inner - first);
      const T* x = static_cast<const T*>(args.x) + o * args.reduced * args.inner + first;
      T* y = static_cast<T*>(args.y) + o * args.inner + first;
      int64_t* index = args.index + o * args.inner + first;
      std::copy_n(x, cols, y);
      std::fill_n(index, cols, 0);
      for (int64_t r = 1; r < args.reduced; ++r) {
        const T* row = x + r * args.inner;
        for (int64_t i = 0; i < cols; ++i) {
          const auto value = static_cast<Compute<T>>(row[i]), most = static_cast<Compute<T>>(y[i]);
          const bool larger = value > most || (std::isnan(value) && !std::isnan(most));
          y[i] = larger ? row[i] : y[i];
          index[i] = larger ? r : index[i];
        }
      }
    }
  });
}

void max_forward_kernel(const MaxForward& args) {
  dispatch_f32_f64_bf16(args.dtype, "max_forward", [&]<class T>() {
    if (args.inner == 1) {
      max_rows<T>(args);
    } else {
      max_columns<T>(args);
    }
  });
}

}  // namespace
}  // namespace elwise::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace elwise::cpu {

HWY_EXPORT(sum_forward_kernel);
HWY_EXPORT(max_forward_kernel);

void sum_forward(const SumForward& args) {
  HWY_DYNAMIC_DISPATCH(sum_forward_kernel)(args);
}

void max_forward(const MaxForward& args) {
  ELWISE_CHECK(args.reduced > 0 || args.outer * args.inner == 0,
               "max_forward: expected at least one element to reduce, got none");
  HWY_DYNAMIC_DISPATCH(max_forward_kernel)(args);
}

}  // namespace elwise::cpu
#endif
