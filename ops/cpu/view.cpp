#include "ops/view_kernels.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <utility>

#include "core/parallel.h"
#include "ops/cpu/elements.h"

namespace elwise::cpu {
namespace {

/// The loop nest of a copy, in any order of dimensions, since each element is copied by itself.
struct CopyNest {
  Extents extents;
  Strides x_strides{};
  Strides y_strides{};

  /// The dimension that `holds` of (x stride, y stride), or -1.
  template <class Predicate>
  int find(const Predicate& holds) const {
    for (int i = 0; i < extents.rank; ++i) {
      if (holds(x_strides[static_cast<size_t>(i)], y_strides[static_cast<size_t>(i)])) return i;
    }
    return -1;
  }

  void move_last(int dimension) {
    for (size_t i = static_cast<size_t>(dimension); i + 1 < static_cast<size_t>(extents.rank); ++i) {
      std::swap(extents.size[i], extents.size[i + 1]);
      std::swap(x_strides[i], x_strides[i + 1]);
      std::swap(y_strides[i], y_strides[i + 1]);
    }
  }
};

/// The nest without dimensions of size 1.
CopyNest nest_of(const StridedCopy& args) {
  CopyNest nest;
  for (size_t i = 0; i < static_cast<size_t>(args.extents.rank); ++i) {
    if (args.extents.size[i] == 1) continue;
    const size_t last = static_cast<size_t>(nest.extents.rank++);
    nest.extents.size[last] = args.extents.size[i];
    nest.x_strides[last] = args.x_strides[i];
    nest.y_strides[last] = args.y_strides[i];
  }
  return nest;
}

/// Rows that are dense on both sides, along the innermost dimension.
template <class T>
void copy_rows(const CopyNest& nest, const T* x, T* y) {
  const std::array<Strides, 2> strides{nest.x_strides, nest.y_strides};
  parallel_elements(nest.extents.count(), [&](int64_t begin, int64_t end) {
    for_each_run(nest.extents, strides, begin, end, [&](const auto& offsets, int64_t, int64_t n) {
      std::memcpy(y + offsets[1], x + offsets[0], static_cast<size_t>(n) * sizeof(T));
    });
  });
}

/// Any strides.
template <class T>
void copy_elements(const CopyNest& nest, const T* x, T* y) {
  const size_t inner = static_cast<size_t>(std::max(nest.extents.rank - 1, 0));
  const int64_t x_stride = nest.x_strides[inner], y_stride = nest.y_strides[inner];
  const std::array<Strides, 2> strides{nest.x_strides, nest.y_strides};
  parallel_elements(nest.extents.count(), [&](int64_t begin, int64_t end) {
    for_each_run(nest.extents, strides, begin, end, [&](const auto& offsets, int64_t, int64_t n) {
      const T* from = x + offsets[0];
      T* to = y + offsets[1];
      for (int64_t i = 0; i < n; ++i) to[i * y_stride] = from[i * x_stride];
    });
  });
}

/// y[j * y_stride + i] = x[i * x_stride + j] for i < rows, j < cols, by way of a buffer: both sides are then
/// read and written row by row, and rows a power of two apart do not share a cache set.
template <class T, int64_t kTile>
void transpose_tile(const T* x, int64_t x_stride, T* y, int64_t y_stride, int64_t rows, int64_t cols) {
  T tile[kTile][kTile + 1];
  for (int64_t i = 0; i < rows; ++i) {
    std::memcpy(tile[i], x + i * x_stride, static_cast<size_t>(cols) * sizeof(T));
  }
  for (int64_t j = 0; j < cols; ++j) {
    for (int64_t i = 0; i < rows; ++i) y[j * y_stride + i] = tile[i][j];
  }
}

/// The last dimension is dense in y, the one before it in x.
template <class T>
void copy_transposed(const CopyNest& nest, const T* x, T* y) {
  constexpr int64_t kTile = sizeof(T) == 8 ? 32 : 64;
  const size_t row = static_cast<size_t>(nest.extents.rank) - 1, col = row - 1;
  const int64_t rows = nest.extents.size[row], cols = nest.extents.size[col];
  // A nest over the tiles.
  CopyNest tiles = nest;
  for (const size_t i : {col, row}) {
    tiles.extents.size[i] = (nest.extents.size[i] + kTile - 1) / kTile;
    tiles.x_strides[i] *= kTile;
    tiles.y_strides[i] *= kTile;
  }
  const int64_t row_tiles = tiles.extents.size[row], col_tiles = tiles.extents.size[col];
  const std::array<Strides, 2> strides{tiles.x_strides, tiles.y_strides};
  parallel_for(tiles.extents.count(), 16384 / (kTile * kTile), [&](int64_t begin, int64_t end) {
    for_each_run(tiles.extents, strides, begin, end, [&](const auto& offsets, int64_t first, int64_t n) {
      for (int64_t t = 0; t < n; ++t) {
        const int64_t i = (first + t) % row_tiles, j = (first + t) / row_tiles % col_tiles;
        transpose_tile<T, kTile>(x + offsets[0] + t * tiles.x_strides[row], nest.x_strides[row],
                                 y + offsets[1] + t * tiles.y_strides[row], nest.y_strides[col],
                                 std::min(kTile, rows - i * kTile), std::min(kTile, cols - j * kTile));
      }
    });
  });
}

template <class T>
void copy_any(const StridedCopy& args) {
  const T* x = static_cast<const T*>(args.x);
  T* y = static_cast<T*>(args.y);
  CopyNest nest = nest_of(args);
  if (nest.extents.count() == 0) return;
  if (const int dense = nest.find([](int64_t xs, int64_t ys) { return xs == 1 && ys == 1; }); dense >= 0) {
    nest.move_last(dense);
    return copy_rows(nest, x, y);
  }
  const int dense_x = nest.find([](int64_t xs, int64_t) { return xs == 1; });
  if (dense_x >= 0) nest.move_last(dense_x);
  const int dense_y = nest.find([](int64_t, int64_t ys) { return ys == 1; });
  if (dense_y >= 0) nest.move_last(dense_y);
  if (dense_x >= 0 && dense_y >= 0) return copy_transposed(nest, x, y);
  copy_elements(nest, x, y);
}

}  // namespace

void strided_copy(const StridedCopy& args) {
  dispatch_any(args.dtype, [&]<class T>() { copy_any<T>(args); });
}

}  // namespace elwise::cpu
