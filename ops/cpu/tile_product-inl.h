// Products of tiles that are in the caches: one operand read by strides, broadcast element by element, the
// other by vectors. And the transposition that brings an operand into this form. Compiled once per target.

#if defined(ELWISE_OPS_CPU_TILE_PRODUCT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ELWISE_OPS_CPU_TILE_PRODUCT_INL_H_
#undef ELWISE_OPS_CPU_TILE_PRODUCT_INL_H_
#else
#define ELWISE_OPS_CPU_TILE_PRODUCT_INL_H_
#endif

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>
#include <utility>

#include "ops/cpu/matmul_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// A register tile: 8 x 3 accumulators of 32 registers (AVX-512), 4 x 3 of 16. 8 divides the usual head sizes.
inline constexpr int64_t kProductRows = kTileRows > 4 ? 8 : 4;
inline constexpr int64_t kProductVectors = 3;

/// c = a b or, with factors, c = factors c + a b, column by column.
template <class T>
struct TileProduct {
  Operand<T> a;                // [rows, depth]
  int64_t rows;                // read and written up to a multiple of kProductRows
  const T* b;                  // [depth, vectors of columns], each row aligned to a vector
  int64_t ldb;                 //
  int64_t vectors;             //
  int64_t depth;               //
  T* c;                        // [rows, vectors of columns]
  int64_t ldc;                 //
  const T* factors = nullptr;  // kProductVectors vectors, used for each so many columns
};

/// kProductRows rows. kIndex counts the accumulators, kVector those of a row.
template <size_t... kVector, size_t... kIndex, class T>
HWY_INLINE void multiply_rows(std::index_sequence<kVector...>, std::index_sequence<kIndex...>,
                              const Operand<T>& a, const T* HWY_RESTRICT b, int64_t ldb, int64_t depth,
                              const T* factors, T* HWY_RESTRICT c, int64_t ldc) {
  const hn::ScalableTag<T> d;
  using V = hn::Vec<decltype(d)>;
  constexpr size_t kWide = sizeof...(kVector);
  constexpr int64_t kLanes = kVectorLanes<T>;
  const auto row = [](size_t index) { return static_cast<int64_t>(index / kWide); };
  const auto col = [](size_t index) { return static_cast<int64_t>(index % kWide) * kLanes; };
  // Two pointers and three strides reach all rows of a: more would not stay in registers.
  const T* HWY_RESTRICT low = a.data;
  const T* HWY_RESTRICT high = a.data + 4 * a.stride_i;
  const auto left = [&]<size_t kRow>() HWY_ATTR {
    return hn::Set(d, (kRow < 4 ? low : high)[static_cast<int64_t>(kRow % 4) * a.stride_i]);
  };
  (hwy::Prefetch(c + row(kIndex) * ldc + col(kIndex)), ...);
  V sums[] = {((void)kIndex, hn::Zero(d))...};
  for (int64_t p = 0; p < depth; ++p, low += a.stride_p, high += a.stride_p, b += ldb) {
    V columns[] = {hn::Load(d, b + static_cast<int64_t>(kVector) * kLanes)...};
    (keep_in_register(columns[kVector]), ...);
    ((sums[kIndex] =
          hn::MulAdd(left.template operator()<kIndex / kWide>(), columns[kIndex % kWide], sums[kIndex])),
     ...);
  }
  const auto finish = [&](V sum, size_t index) HWY_ATTR {
    T* to = c + row(index) * ldc + col(index);
    if (factors != nullptr) sum = hn::MulAdd(hn::Load(d, factors + col(index)), hn::LoadU(d, to), sum);
    hn::StoreU(sum, d, to);
  };
  (finish(sums[kIndex], kIndex), ...);
}

/// All rows of kWide vectors of columns from `vector` on. A function of its own: its loop has few values to
/// keep.
template <size_t kWide, class T>
HWY_NOINLINE void multiply_columns(const TileProduct<T>& product, int64_t vector) {
  Operand<T> a = product.a;
  const T* b = product.b + vector * kVectorLanes<T>;
  T* c = product.c + vector * kVectorLanes<T>;
  const T* factors = product.factors;
  const int64_t ldb = product.ldb, depth = product.depth, ldc = product.ldc;
  for (int64_t left = product.rows; left > 0; left -= kProductRows) {
    multiply_rows(std::make_index_sequence<kWide>(), std::make_index_sequence<kProductRows * kWide>(), a, b,
                  ldb, depth, factors, c, ldc);
    a.data += kProductRows * a.stride_i;
    c += kProductRows * ldc;
  }
}

template <class T>
void multiply(const TileProduct<T>& product) {
  for (int64_t vector = 0; vector < product.vectors;) {
    const int64_t left = product.vectors - vector, wide = left == 4 ? 2 : std::min(left, kProductVectors);
    if (wide == 3) {
      multiply_columns<3>(product, vector);
    } else if (wide == 2) {
      multiply_columns<2>(product, vector);
    } else {
      multiply_columns<1>(product, vector);
    }
    vector += wide;
  }
}

/// A vector of 128-bit blocks that stand `distance` elements apart.
template <class D, class T = hn::TFromD<D>>
HWY_INLINE hn::VFromD<D> load_blocks(D d, const T* from, int64_t distance) {
  if constexpr (hn::MaxLanes(D()) * sizeof(T) <= 16) {
    return hn::LoadU(d, from);
  } else {
    const hn::Half<D> half;
    constexpr int64_t kBlocks = hn::MaxLanes(half) * sizeof(T) / 16;
    return hn::Combine(d, load_blocks(half, from + kBlocks * distance, distance),
                       load_blocks(half, from, distance));
  }
}

/// Columns that transpose_columns takes at a time.
template <class T>
inline constexpr int64_t kTransposed = 16 / sizeof(T);

/// Calls store(p, v) for p in [0, kTransposed), lane i of v being from[i * stride + p].
template <class T, class Store>
HWY_INLINE void transpose_columns(const T* HWY_RESTRICT from, int64_t stride, const Store& store) {
  const hn::ScalableTag<T> d;
  const int64_t distance = kTransposed<T> * stride;
  const auto r0 = load_blocks(d, from, distance), r1 = load_blocks(d, from + stride, distance);
  if constexpr (kTransposed<T> == 4) {
    const auto r2 = load_blocks(d, from + 2 * stride, distance);
    const auto r3 = load_blocks(d, from + 3 * stride, distance);
    const auto low02 = hn::InterleaveLower(d, r0, r2), high02 = hn::InterleaveUpper(d, r0, r2);
    const auto low13 = hn::InterleaveLower(d, r1, r3), high13 = hn::InterleaveUpper(d, r1, r3);
    store(0, hn::InterleaveLower(d, low02, low13));
    store(1, hn::InterleaveUpper(d, low02, low13));
    store(2, hn::InterleaveLower(d, high02, high13));
    store(3, hn::InterleaveUpper(d, high02, high13));
  } else {
    store(0, hn::InterleaveLower(d, r0, r1));
    store(1, hn::InterleaveUpper(d, r0, r1));
  }
}

}  // namespace elwise::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
