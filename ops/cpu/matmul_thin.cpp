#include <algorithm>

#include "core/parallel.h"
#include "ops/cpu/matmul_routes.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/matmul_thin.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "ops/cpu/matmul_tile-inl.h"
#include "ops/cpu/row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE {
namespace {

constexpr size_t kRegisters = HWY_TARGET <= HWY_AVX3 ? 32 : 16;
// Elements of b that make a range worth a thread's start.
constexpr int64_t kGrain = int64_t{1} << 15;
// Sums over rows of b are kept in blocks of so many rows: each is a stream of memory that goes on where the
// last columns ended. More with more rows of a, whose sums are read and written once per block.
template <int64_t kM>
constexpr int64_t kBlockK = 16 * kM;

/// One of the products, with the strides of a, b and c resolved.
template <class T>
struct Product {
  const T* a;  // element (i, p) at i * a_row + p * a_k
  const T* b;
  T* c;
  const T* bias;
  int64_t n, k, a_row, a_k, ldb, ldc;
  Compute<T> scale;
  bool accumulate;

  void finish(int64_t i, int64_t j, Compute<T> sum) const {
    T& to = c[i * ldc + j];
    Compute<T> start = bias ? static_cast<Compute<T>>(bias[j]) : 0;
    start += accumulate ? static_cast<Compute<T>>(to) : 0;
    to = static_cast<T>(scale * sum + start);
  }
};

// How far ahead of its use b is asked for: in rows of a transposed b, 36 KiB at the least of BERT-base's
// weights, and in columns of the other for 16 rows. With few rows of a, requests come faster
// than memory takes them, and some are dropped: those are made again, as often as was fastest.
constexpr int64_t kRowsAhead[] = {12, 8, 16};
constexpr int64_t kColumnsAhead[] = {512, 256, 768};
template <int64_t kM>
constexpr int64_t kRowsRequests = kM == 1 || kM > 4 ? 3 : 2;
template <int64_t kM>
constexpr int64_t kColumnsRequests = kM == 1   ? 3
                                     : kM <= 4 ? 2
                                               : 1;

/// x[0] + x[2], y[0] + y[2], x[1] + x[3], y[1] + y[3] in each block of 128 bits; in f64 x[0] + x[1] and y[0]
/// + y[1]. Then, of f32, the same with pairs for elements.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V sum_pairs(D d, V x, V y) {
  return hn::Add(hn::InterleaveLower(d, x, y), hn::InterleaveUpper(d, x, y));
}

/// The sum of a vector's blocks of 128 bits.
template <class D, class V = hn::Vec<D>>
HWY_INLINE auto sum_blocks(D, V v) {
  if constexpr (hn::MaxLanes(D()) * sizeof(hn::TFromD<D>) <= 16) {
    return v;
  } else {
    const hn::Half<D> half;
    return sum_blocks(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
  }
}

/// totals[i] = the sum of the lanes of vectors[i], a block of 128 bits of them at a time: one by one would
/// take three times as long, which shows where k is below 1000.
template <int64_t kCount, class D, class T = hn::TFromD<D>>
HWY_INLINE void sum_lanes(D d, const hn::Vec<D> (&vectors)[kCount], T* HWY_RESTRICT totals) {
  constexpr int64_t kBlock = 16 / sizeof(T), kWhole = kCount / kBlock * kBlock;
  const hn::CappedTag<T, kBlock> block;
#pragma GCC unroll 8
  for (int64_t i = 0; i < kWhole; i += kBlock) {
    hn::Vec<D> sums = sum_pairs(d, vectors[i], vectors[i + 1]);
    if constexpr (kBlock == 4) {
      const hn::Repartition<double, D> pairs;
      const auto first = hn::BitCast(pairs, sums),
                 second = hn::BitCast(pairs, sum_pairs(d, vectors[i + 2], vectors[i + 3]));
      sums = hn::Add(hn::BitCast(d, hn::InterleaveLower(pairs, first, second)),
                     hn::BitCast(d, hn::InterleaveUpper(pairs, first, second)));
    }
    hn::StoreU(sum_blocks(d, sums), block, totals + i);
  }
#pragma GCC unroll 8
  for (int64_t i = kWhole; i < kCount; ++i) totals[i] = hn::GetLane(hn::SumOfLanes(d, vectors[i]));
}

/// kCols columns from `begin` of all kM rows; b's rows hold k.
template <int64_t kM, int64_t kCols, class T>
HWY_INLINE void dot_columns(const Product<T>& product, int64_t begin) {
  const hn::ScalableTag<Compute<T>> d;
  using V = hn::Vec<decltype(d)>;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const T* HWY_RESTRICT a = product.a;
  const T* HWY_RESTRICT b = product.b + begin * product.ldb;
  V sums[kM * kCols];
#pragma GCC unroll 32
  for (V& sum : sums) sum = hn::Zero(d);
  int64_t p = 0;
  for (; p + lanes <= product.k; p += lanes) {
    V columns[kCols];
#pragma GCC unroll 8
    for (int64_t j = 0; j < kCols; ++j) {
#pragma GCC unroll 3
      for (int64_t i = 0; i < kRowsRequests<kM>; ++i) prefetch_far(b + (j + kRowsAhead[i]) * product.ldb + p);
      columns[j] = load_lanes(d, b + j * product.ldb + p, lanes);
      keep_in_register(columns[j]);
    }
#pragma GCC unroll 8
    for (int64_t i = 0; i < kM; ++i) {
      V row = load_lanes(d, a + i * product.a_row + p, lanes);
      if constexpr (kM > 1) keep_in_register(row);
#pragma GCC unroll 8
      for (int64_t j = 0; j < kCols; ++j)
        sums[i * kCols + j] = hn::MulAdd(row, columns[j], sums[i * kCols + j]);
    }
  }
  Compute<T> totals[kM * kCols];
  sum_lanes(d, sums, totals);
  for (int64_t i = 0; i < kM; ++i) {
    for (int64_t j = 0; j < kCols; ++j) {
      Compute<T> total = totals[i * kCols + j];
      for (int64_t q = p; q < product.k; ++q) {
        total += static_cast<Compute<T>>(a[i * product.a_row + q]) *
                 static_cast<Compute<T>>(b[j * product.ldb + q]);
      }
      product.finish(i, begin + j, total);
    }
  }
}

template <int64_t kM, class T>
HWY_NOINLINE void dot_range(const Product<T>& product, int64_t begin, int64_t end) {
  // The sums fill the registers but for the columns' vectors and one of a.
  constexpr int64_t kMost = (kRegisters - 2) / (kM + 1);
  constexpr int64_t kCols = std::min<int64_t>(kMost, kM == 1 ? 8 : 4);
  int64_t j = begin;
  for (; j + kCols <= end; j += kCols) dot_columns<kM, kCols>(product, j);
  for (; j < end; ++j) dot_columns<kM, 1>(product, j);
}

/// kVectors vectors of columns from `begin` of all kM rows; b's rows hold n. ahead[i]: from an element of b
/// to the one that the i-th request of it is for.
template <int64_t kM, int64_t kVectors, class T>
HWY_INLINE void add_rows(const Product<T>& product, int64_t begin, const int64_t* ahead) {
  const hn::ScalableTag<T> d;
  using V = hn::Vec<decltype(d)>;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  V sums[kM][kVectors];
#pragma GCC unroll 8
  for (auto& row : sums) {
#pragma GCC unroll 8
    for (V& sum : row) sum = hn::Zero(d);
  }
  for (int64_t p = 0; p < product.k; ++p) {
    const T* HWY_RESTRICT b = product.b + p * product.ldb + begin;
    const T* HWY_RESTRICT a = product.a + p * product.a_k;
    V columns[kVectors];
#pragma GCC unroll 8
    for (int64_t j = 0; j < kVectors; ++j) {
#pragma GCC unroll 3
      for (int64_t i = 0; i < kColumnsRequests<kM>; ++i) prefetch_far(b + ahead[i] + j * lanes);
      columns[j] = hn::LoadU(d, b + j * lanes);
      keep_in_register(columns[j]);
    }
#pragma GCC unroll 8
    for (int64_t i = 0; i < kM; ++i) {
      const V factor = hn::Set(d, a[i * product.a_row]);
#pragma GCC unroll 8
      for (int64_t j = 0; j < kVectors; ++j) sums[i][j] = hn::MulAdd(factor, columns[j], sums[i][j]);
    }
  }
  const V scale = hn::Set(d, product.scale);
#pragma GCC unroll 8
  for (int64_t i = 0; i < kM; ++i) {
#pragma GCC unroll 8
    for (int64_t j = 0; j < kVectors; ++j) {
      T* to = product.c + i * product.ldc + begin + j * lanes;
      V start = product.bias ? hn::LoadU(d, product.bias + begin + j * lanes) : hn::Zero(d);
      if (product.accumulate) start = hn::Add(start, hn::LoadU(d, to));
      hn::StoreU(hn::MulAdd(sums[i][j], scale, start), d, to);
    }
  }
}

template <int64_t kM, class T>
HWY_NOINLINE void rows_range(const Product<T>& product, int64_t begin, int64_t end) {
  constexpr int64_t kMost = (kRegisters - 2) / (kM + 1);
  constexpr int64_t kVectors = std::min<int64_t>(kMost, 8);
  const auto lanes = static_cast<int64_t>(hn::Lanes(hn::ScalableTag<T>()));
  int64_t j = begin;
  int64_t ahead[kColumnsRequests<kM>];
  const auto look_ahead = [&] {  // behind the last column comes the next block of rows
    for (int64_t i = 0; i < kColumnsRequests<kM>; ++i) {
      const int64_t column = j - begin + kColumnsAhead[i] / kM, width = end - begin;
      ahead[i] = column / width * kBlockK<kM> * product.ldb + column % width - (j - begin);
    }
  };
  for (; j + kVectors * lanes <= end; j += kVectors * lanes) {
    look_ahead();
    add_rows<kM, kVectors>(product, j, ahead);
  }
  look_ahead();
  for (; j + lanes <= end; j += lanes) add_rows<kM, 1>(product, j, ahead);
  for (; j < end; ++j) {
    for (int64_t i = 0; i < kM; ++i) {
      T sum = 0;
      for (int64_t p = 0; p < product.k; ++p) {
        sum += product.a[i * product.a_row + p * product.a_k] * product.b[p * product.ldb + j];
      }
      product.finish(i, j, sum);
    }
  }
}

/// Columns [begin, end); b's rows hold n.
template <int64_t kM, class T>
void add_blocks(const Product<T>& product, int64_t begin, int64_t end) {
  for (int64_t k0 = 0; k0 < product.k; k0 += kBlockK<kM>) {
    Product<T> block = product;
    block.a += k0 * product.a_k;
    block.b += k0 * product.ldb;
    block.k = std::min(kBlockK<kM>, product.k - k0);
    if (k0 > 0) {
      block.accumulate = true;
      block.bias = nullptr;
    }
    rows_range<kM>(block, begin, end);
  }
}

/// Columns [begin, end) of one product.
template <int64_t kM, class T>
void columns(const Product<T>& product, [[maybe_unused]] bool transpose_b, int64_t begin, int64_t end) {
  if constexpr (std::is_same_v<T, Compute<T>>) {
    if (!transpose_b) return add_blocks<kM>(product, begin, end);
  }
  dot_range<kM>(product, begin, end);
}

/// Calls function.template operator()<kM>() for m = kM rows, up to kMaxThinRows.
template <int64_t kM = kMaxThinRows, class Function>
void dispatch_rows(int64_t m, const Function& function) {
  if constexpr (kM > 1) {
    if (m < kM) return dispatch_rows<kM - 1>(m, function);
  }
  function.template operator()<kM>();
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
          .scale = static_cast<Compute<T>>(args.scale),
          .accumulate = args.accumulate};
}

template <class T>
void thin(const Matmul& args) {
  // Columns are shared out in chunks that keep the vectors whole, so that a column's sum never depends on the
  // split.
  constexpr int64_t kChunk = 64;
  const int64_t chunks = (args.n + kChunk - 1) / kChunk;
  parallel_for(
      args.outer * args.inner * chunks, 1 + kGrain / (kChunk * args.k), [&](int64_t first, int64_t last) {
        for (int64_t item = first; item < last;) {
          const int64_t index = item / chunks, chunk = item % chunks;
          const int64_t count = std::min(last - item, chunks - chunk);
          const Product<T> product = make_product<T>(args, index);
          const int64_t begin = chunk * kChunk, end = std::min((chunk + count) * kChunk, args.n);
          dispatch_rows(args.m, [&]<int64_t kM>() { columns<kM>(product, args.transpose_b, begin, end); });
          item += count;
        }
      });
}

void thin_kernel(const Matmul& args) {
  dispatch_f32_f64_bf16(args.dtype, "matmul", [&]<class T>() { thin<T>(args); });
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
