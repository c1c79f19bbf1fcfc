// The inner parts of the blocked matrix product: packing of panels and the register tile. Included once per
// target by matmul_blocked.cpp.

#if defined(ELWISE_OPS_CPU_MATMUL_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ELWISE_OPS_CPU_MATMUL_TILE_INL_H_
#undef ELWISE_OPS_CPU_MATMUL_TILE_INL_H_
#else
#define ELWISE_OPS_CPU_MATMUL_TILE_INL_H_
#endif

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <cstdint>
#include <type_traits>
#include <utility>

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// A tile's accumulators fill the registers but for the vectors of b and one of a: 12 x 2 vectors of 32
// registers (AVX-512), 4 x 3 of 16.
#if HWY_TARGET <= HWY_AVX3
inline constexpr int kTileRows = 12;
inline constexpr int kTileVectors = 2;
#else
inline constexpr int kTileRows = 4;
inline constexpr int kTileVectors = 3;
#endif

template <class T>
inline constexpr int kVectorLanes = hn::MaxLanes(hn::ScalableTag<T>());
template <class T>
inline constexpr int kTileCols = kTileVectors* kVectorLanes<T>;

/// Part of a or b as packing sees it: element (i, p) is data[i * stride_i + p * stride_p], i along the rows
/// of a or the columns of b, p along k.
template <class T>
struct Operand {
  const T* data;
  int64_t stride_i;
  int64_t stride_p;
};

/// to[p][i] = from[i][p] for a 4 x 4 (f32) or 2 x 2 (f64) block; rows of `to` are kWidth apart.
template <int kWidth, class T>
HWY_INLINE void transpose_block(const T* HWY_RESTRICT from, int64_t stride, T* HWY_RESTRICT to) {
  const hn::CappedTag<T, 16 / sizeof(T)> d;
  const auto r0 = hn::LoadU(d, from);
  const auto r1 = hn::LoadU(d, from + stride);
  if constexpr (sizeof(T) == 4) {
    const auto r2 = hn::LoadU(d, from + 2 * stride);
    const auto r3 = hn::LoadU(d, from + 3 * stride);
    const auto low02 = hn::InterleaveLower(d, r0, r2), high02 = hn::InterleaveUpper(d, r0, r2);
    const auto low13 = hn::InterleaveLower(d, r1, r3), high13 = hn::InterleaveUpper(d, r1, r3);
    hn::StoreU(hn::InterleaveLower(d, low02, low13), d, to);
    hn::StoreU(hn::InterleaveUpper(d, low02, low13), d, to + kWidth);
    hn::StoreU(hn::InterleaveLower(d, high02, high13), d, to + 2 * kWidth);
    hn::StoreU(hn::InterleaveUpper(d, high02, high13), d, to + 3 * kWidth);
  } else {
    hn::StoreU(hn::InterleaveLower(d, r0, r1), d, to);
    hn::StoreU(hn::InterleaveUpper(d, r0, r1), d, to + kWidth);
  }
}

/// Packs full panels from rows of `from` that are contiguous in i.
template <int kWidth, class T>
HWY_INLINE void copy_panels(const Operand<T>& from, int64_t panels, int64_t depth, T* HWY_RESTRICT to) {
  constexpr int64_t kBlock = 16 / sizeof(T), kLine = 64 / sizeof(T), kRowsAhead = 16;
  const hn::CappedTag<T, kBlock> d;
  for (int64_t p = 0; p < depth; ++p) {
    const T* HWY_RESTRICT row = from.data + p * from.stride_p;
    for (int64_t i = 0; i < panels * kWidth; i += kLine) hwy::Prefetch(row + kRowsAhead * from.stride_p + i);
    for (int64_t panel = 0; panel < panels; ++panel) {
      T* HWY_RESTRICT target = to + (panel * depth + p) * kWidth;
      for (int64_t i = 0; i < kWidth; i += kBlock) {
        hn::StoreU(hn::LoadU(d, row + panel * kWidth + i), d, target + i);
      }
    }
  }
}

/// Packs a full panel, the whole cache lines of k only, from `from` that is contiguous in p.
template <int kWidth, class T>
HWY_INLINE void transpose_panel(const Operand<T>& from, int64_t depth, T* HWY_RESTRICT to) {
  constexpr int64_t kBlock = 16 / sizeof(T), kLine = 64 / sizeof(T);
  for (int64_t p = 0; p + kLine <= depth; p += kLine) {
    // A line of every row before the next line: rows a power of two apart share a few sets of the cache.
    for (int64_t i = 0; i < kWidth; ++i) hwy::Prefetch(from.data + i * from.stride_i + p + 2 * kLine);
    for (int64_t i = 0; i < kWidth; i += kBlock) {
      for (int64_t q = p; q < p + kLine; q += kBlock) {
        transpose_block<kWidth>(from.data + i * from.stride_i + q, from.stride_i, to + q * kWidth + i);
      }
    }
  }
}

/// Packs [width, depth] of `from` as panels [depth][kWidth], with zeros from `width` on; bf16 as f32.
template <int kWidth, class S, class T>
HWY_NOINLINE void pack_panels(const Operand<S>& from, int64_t width, int64_t depth, T* HWY_RESTRICT to) {
  constexpr bool kSame = std::is_same_v<S, T>;  // else element by element: this is no processor's fast way
  const int64_t full = kSame && from.stride_i == 1 ? width / kWidth * kWidth : 0;
  if constexpr (kSame) {
    if (full > 0) copy_panels<kWidth>(from, full / kWidth, depth, to);
  }
  for (int64_t i0 = full; i0 < width; i0 += kWidth) {
    const Operand<S> panel{from.data + i0 * from.stride_i, from.stride_i, from.stride_p};
    T* HWY_RESTRICT target = to + i0 * depth;
    const int64_t rows = width - i0 < kWidth ? width - i0 : kWidth;
    int64_t p = 0;
    if constexpr (kSame) {
      if (rows == kWidth && from.stride_p == 1) {
        transpose_panel<kWidth>(panel, depth, target);
        p = depth - depth % static_cast<int64_t>(64 / sizeof(T));
      }
    }
    for (; p < depth; ++p) {
      for (int64_t i = 0; i < kWidth; ++i) {
        target[p * kWidth + i] =
            i < rows ? static_cast<T>(panel.data[i * panel.stride_i + p * panel.stride_p]) : T{0};
      }
    }
  }
}

/// Part of a or b as a tile reads it: element (i, p) is data[p * step + i]. Vectors of b are aligned.
template <class T>
struct TileOperand {
  const T* data;
  int64_t step;
};

/// Where a tile goes: c = scale * tile (+ c) (+ bias).
template <class T>
struct TileTarget {
  T* c;
  int64_t ldc;
  int64_t rows;
  int64_t cols;
  T scale;
  bool accumulate;
  const T* bias;  // null: none
};

/// Keeps `v` in a register: g++ would rather read it from memory again for every use, and the loads, not the
/// multiply-adds, would then limit the tile.
template <class V>
HWY_INLINE void keep_in_register([[maybe_unused]] V& v) {
#if HWY_ARCH_X86 && HWY_COMPILER_GCC_ACTUAL
  asm("" : "+v"(v.raw));
#endif
}

template <class D, class V, class T>
HWY_INLINE void store_vector(D d, V sum, int64_t row, int64_t col, const TileTarget<T>& to) {
  T* HWY_RESTRICT c = to.c + row * to.ldc + col;
  V start = to.bias ? hn::LoadU(d, to.bias + col) : hn::Zero(d);
  if (to.accumulate) start = hn::Add(start, hn::LoadU(d, c));
  hn::StoreU(hn::MulAdd(sum, hn::Set(d, to.scale), start), d, c);
}

/// One tile. kIndex counts the accumulators, kVectors to a row; index sequences, because g++ does not keep a
/// looped-over array in registers reliably.
template <int kVectors, class T, size_t... kIndex, size_t... kVector>
HWY_INLINE void tile(std::index_sequence<kIndex...>, std::index_sequence<kVector...>, TileOperand<T> left,
                     TileOperand<T> right, int64_t depth, const TileTarget<T>& to) {
  const hn::ScalableTag<T> d;
  using V = hn::Vec<decltype(d)>;
  constexpr int64_t kLanes = kVectorLanes<T>;
  for (int64_t i = 0; i < to.rows; ++i) {
    for (int64_t j = 0; j < to.cols; j += 64 / sizeof(T)) hwy::Prefetch(to.c + i * to.ldc + j);
  }
  const T* HWY_RESTRICT a = left.data;
  const T* HWY_RESTRICT b = right.data;
  V sums[] = {((void)kIndex, hn::Zero(d))...};
  for (int64_t p = 0; p < depth; ++p, a += left.step, b += right.step) {
    V columns[] = {hn::Load(d, b + static_cast<int64_t>(kVector) * kLanes)...};
    (keep_in_register(columns[kVector]), ...);
    ((sums[kIndex] = hn::MulAdd(hn::Set(d, a[static_cast<int64_t>(kIndex / kVectors)]),
                                columns[kIndex % kVectors], sums[kIndex])),
     ...);
  }
  if (to.cols == kVectors * kLanes) {
    ((static_cast<int64_t>(kIndex / kVectors) < to.rows
          ? store_vector(d, sums[kIndex], static_cast<int64_t>(kIndex / kVectors),
                         static_cast<int64_t>(kIndex % kVectors) * kLanes, to)
          : void()),
     ...);
    return;
  }
  HWY_ALIGN T buffer[sizeof...(kIndex) * static_cast<size_t>(kLanes)];
  (hn::Store(sums[kIndex], d, buffer + static_cast<int64_t>(kIndex) * kLanes), ...);
  for (int64_t i = 0; i < to.rows; ++i) {
    for (int64_t j = 0; j < to.cols; ++j) {
      T& c = to.c[i * to.ldc + j];
      c = to.scale * buffer[i * kVectors * kLanes + j] +
          ((to.bias ? to.bias[j] : T{0}) + (to.accumulate ? c : T{0}));
    }
  }
}

template <int kRows, class T>
HWY_INLINE void tile_of_rows(TileOperand<T> a, TileOperand<T> b, int64_t depth, const TileTarget<T>& to) {
  const int64_t vectors = (to.cols + kVectorLanes<T> - 1) / kVectorLanes<T>;
  const auto run = [&]<int kVectors>() HWY_ATTR {
    tile<kVectors>(std::make_index_sequence<kRows * kVectors>(), std::make_index_sequence<kVectors>(), a, b,
                   depth, to);
  };
  if constexpr (kTileVectors > 2) {
    if (vectors == 3) return run.template operator()<3>();
  }
  if (vectors == 2) return run.template operator()<2>();
  run.template operator()<1>();
}

/// A tile of any size up to kTileRows x kTileCols<T>. Every element is summed over k in order, whatever the
/// tile's size and its place in the tile. Of a, rows up to the next multiple of 4 are read, of b whole
/// vectors.
template <class T>
HWY_NOINLINE void compute_tile(TileOperand<T> a, TileOperand<T> b, int64_t depth, const TileTarget<T>& to) {
  if constexpr (kTileRows > 4) {
    if (to.rows > 8) return tile_of_rows<12>(a, b, depth, to);
    if (to.rows > 4) return tile_of_rows<8>(a, b, depth, to);
  }
  tile_of_rows<4>(a, b, depth, to);
}

}  // namespace elwise::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
