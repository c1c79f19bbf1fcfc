#include <hwy/cache_control.h>

#include <algorithm>
#include <utility>

#include "core/parallel.h"
#include "ops/cpu/matmul_routes.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/matmul_thin.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "ops/cpu/matmul_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE {
namespace {

constexpr bool kManyRegisters = HWY_TARGET <= HWY_AVX3;
// Elements of b that make a range worth a thread's start.
constexpr int64_t kGrain = int64_t{1} << 15;
// Sums over rows of b are kept in blocks of so many rows: one long sum would lose digits.
constexpr int64_t kBlockK = 512;

/// One of the products, with the strides of a, b and c resolved.
template <class T>
struct Product {
  const T* a;  // element (i, p) at i * a_row + p * a_k
  const T* b;
  T* c;
  const T* bias;
  int64_t n, k, a_row, a_k, ldb, ldc;
  T scale;
  bool accumulate;

  void finish(int64_t i, int64_t j, T sum) const {
    T& to = c[i * ldc + j];
    to = scale * sum + ((bias ? bias[j] : T{0}) + (accumulate ? to : T{0}));
  }
};

/// Some columns from `begin` of all rows; b's rows hold k. kIndex counts the sums, kCol... to a row.
template <class T, size_t... kRow, size_t... kCol, size_t... kIndex>
HWY_INLINE void dot_columns(std::index_sequence<kRow...>, std::index_sequence<kCol...>,
                            std::index_sequence<kIndex...>, const Product<T>& product, int64_t begin) {
  const hn::ScalableTag<T> d;
  using V = hn::Vec<decltype(d)>;
  constexpr size_t kCols = sizeof...(kCol);
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const T* HWY_RESTRICT a = product.a;
  const T* HWY_RESTRICT b = product.b + begin * product.ldb;
  V sums[] = {((void)kIndex, hn::Zero(d))...};
  int64_t p = 0;
  for (; p + lanes <= product.k; p += lanes) {
    V columns[] = {hn::LoadU(d, b + static_cast<int64_t>(kCol) * product.ldb + p)...};
    V rows[] = {hn::LoadU(d, a + static_cast<int64_t>(kRow) * product.a_row + p)...};
    (keep_in_register(columns[kCol]), ...);
    (keep_in_register(rows[kRow]), ...);
    ((sums[kIndex] = hn::MulAdd(rows[kIndex / kCols], columns[kIndex % kCols], sums[kIndex])), ...);
  }
  T totals[] = {hn::GetLane(hn::SumOfLanes(d, sums[kIndex]))...};
  for (size_t index = 0; index < sizeof...(kIndex); ++index) {
    const auto i = static_cast<int64_t>(index / kCols), j = static_cast<int64_t>(index % kCols);
    for (int64_t q = p; q < product.k; ++q)
      totals[index] += a[i * product.a_row + q] * b[j * product.ldb + q];
    product.finish(i, begin + j, totals[index]);
  }
}

template <size_t kM, class T>
HWY_NOINLINE void dot_range(const Product<T>& product, int64_t begin, int64_t end) {
  constexpr size_t kCols = kM == 1 ? 8 : kM == 2 || kManyRegisters ? 4 : 2;
  constexpr std::make_index_sequence<kM> kRows;
  int64_t j = begin;
  for (; j + static_cast<int64_t>(kCols) <= end; j += kCols) {
    dot_columns(kRows, std::make_index_sequence<kCols>(), std::make_index_sequence<kM * kCols>(), product, j);
  }
  for (; j < end; ++j) dot_columns(kRows, std::make_index_sequence<1>(), kRows, product, j);
}

/// Some vectors of columns from `begin` of all rows; b's rows hold n. kIndex counts the sums.
template <class T, size_t... kVector, size_t... kIndex>
HWY_INLINE void add_rows(std::index_sequence<kVector...>, std::index_sequence<kIndex...>,
                         const Product<T>& product, int64_t begin) {
  const hn::ScalableTag<T> d;
  using V = hn::Vec<decltype(d)>;
  constexpr size_t kVectors = sizeof...(kVector);
  constexpr int64_t kRowsAhead = 16;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  V sums[] = {((void)kIndex, hn::Zero(d))...};
  for (int64_t p = 0; p < product.k; ++p) {
    const T* HWY_RESTRICT row = product.b + p * product.ldb + begin;
    const T* HWY_RESTRICT a = product.a + p * product.a_k;
    (hwy::Prefetch(row + kRowsAhead * product.ldb + static_cast<int64_t>(kVector) * lanes), ...);
    V columns[] = {hn::LoadU(d, row + static_cast<int64_t>(kVector) * lanes)...};
    (keep_in_register(columns[kVector]), ...);
    ((sums[kIndex] = hn::MulAdd(hn::Set(d, a[static_cast<int64_t>(kIndex / kVectors) * product.a_row]),
                                columns[kIndex % kVectors], sums[kIndex])),
     ...);
  }
  const V scale = hn::Set(d, product.scale);
  const auto finish = [&](V sum, int64_t i, int64_t j) HWY_ATTR {
    T* to = product.c + i * product.ldc + j;
    V start = product.bias ? hn::LoadU(d, product.bias + j) : hn::Zero(d);
    if (product.accumulate) start = hn::Add(start, hn::LoadU(d, to));
    hn::StoreU(hn::MulAdd(sum, scale, start), d, to);
  };
  (finish(sums[kIndex], static_cast<int64_t>(kIndex / kVectors),
          begin + static_cast<int64_t>(kIndex % kVectors) * lanes),
   ...);
}

template <size_t kM, class T>
HWY_NOINLINE void rows_range(const Product<T>& product, int64_t begin, int64_t end) {
  constexpr size_t kVectors = kM <= 2 || kManyRegisters ? 4 : 2;
  const auto lanes = static_cast<int64_t>(hn::Lanes(hn::ScalableTag<T>()));
  const int64_t step = static_cast<int64_t>(kVectors) * lanes;
  int64_t j = begin;
  for (; j + step <= end; j += step) {
    add_rows(std::make_index_sequence<kVectors>(), std::make_index_sequence<kM * kVectors>(), product, j);
  }
  for (; j + lanes <= end; j += lanes) {
    add_rows(std::make_index_sequence<1>(), std::make_index_sequence<kM>(), product, j);
  }
  for (; j < end; ++j) {
    for (int64_t i = 0; i < static_cast<int64_t>(kM); ++i) {
      T sum = 0;
      for (int64_t p = 0; p < product.k; ++p) {
        sum += product.a[i * product.a_row + p * product.a_k] * product.b[p * product.ldb + j];
      }
      product.finish(i, j, sum);
    }
  }
}

/// Columns [begin, end) of one product.
template <size_t kM, class T>
void columns(const Product<T>& product, bool transpose_b, int64_t begin, int64_t end) {
  if (transpose_b) return dot_range<kM>(product, begin, end);
  for (int64_t k0 = 0; k0 < product.k; k0 += kBlockK) {
    Product<T> block = product;
    block.a += k0 * product.a_k;
    block.b += k0 * product.ldb;
    block.k = std::min(kBlockK, product.k - k0);
    if (k0 > 0) {
      block.accumulate = true;
      block.bias = nullptr;
    }
    rows_range<kM>(block, begin, end);
  }
}

template <class T>
Product<T> make_product(const Matmul& args, int64_t index) {
  const int64_t o = index / args.inner, i = index % args.inner;
  return {.a = static_cast<const T*>(args.a) + o * args.a_outer + i * args.a_inner,
          .b = static_cast<const T*>(args.b) + o * args.b_outer + i * args.b_inner,
          .c = static_cast<T*>(args.c) + o * args.c_outer + i * args.c_inner,
          .bias = static_cast<const T*>(args.bias),
          .n = args.n,
          .k = args.k,
          .a_row = args.transpose_a ? 1 : args.lda,
          .a_k = args.transpose_a ? args.lda : 1,
          .ldb = args.ldb,
          .ldc = args.ldc,
          .scale = static_cast<T>(args.scale),
          .accumulate = args.accumulate};
}

template <class T>
void thin(const Matmul& args) {
  // Columns are shared out in chunks that keep the vectors whole, so that a column's sum never depends on the
  // split.
  constexpr int64_t kChunk = 64;
  const int64_t chunks = (args.n + kChunk - 1) / kChunk;
  parallel_for(args.outer * args.inner * chunks, 1 + kGrain / (kChunk * args.k),
               [&](int64_t first, int64_t last) {
                 for (int64_t item = first; item < last;) {
                   const int64_t index = item / chunks, chunk = item % chunks;
                   const int64_t count = std::min(last - item, chunks - chunk);
                   const Product<T> product = make_product<T>(args, index);
                   const int64_t begin = chunk * kChunk, end = std::min((chunk + count) * kChunk, args.n);
                   switch (args.m) {
                     case 1:
                       columns<1>(product, args.transpose_b, begin, end);
                       break;
                     case 2:
                       columns<2>(product, args.transpose_b, begin, end);
                       break;
                     case 3:
                       columns<3>(product, args.transpose_b, begin, end);
                       break;
                     default:
                       columns<4>(product, args.transpose_b, begin, end);
                   }
                   item += count;
                 }
               });
}

void thin_kernel(const Matmul& args) {
  dispatch_f32_f64(args.dtype, "matmul", [&]<class T>() { thin<T>(args); });
}

}  // namespace
}  // namespace elwise::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace elwise::cpu {

HWY_EXPORT(thin_kernel);

void matmul_thin(const Matmul& args) {
  HWY_DYNAMIC_DISPATCH(thin_kernel)(args);
}

}  // namespace elwise::cpu
#endif
