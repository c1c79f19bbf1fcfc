#include "ops/view_kernels.h"

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "cuda/launch.cuh"
#include "cuda/loop_nest.cuh"
#include "cuda/vector.cuh"

// Copies between strided tensors. Elements of any dtype are words of their size. Where both sides are dense
// in one dimension a thread moves 16 bytes at a time; where they are dense in two different ones, a block
// moves a square by way of shared memory, so that it reads and writes along rows.

namespace elwise::cuda {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;

/// The loop nest of a copy without dimensions of size 1, y's strides in descending order: neighbouring
/// threads write neighbours.
struct CopyNest {
  Extents extents;
  Strides x_strides{}, y_strides{};

  explicit CopyNest(const StridedCopy& args) {
    std::array<size_t, kMaxRank> order;
    std::iota(order.begin(), order.end(), size_t{0});
    const auto end = std::remove_if(order.begin(), order.begin() + args.extents.rank,
                                    [&](size_t dim) { return args.extents.size[dim] == 1; });
    std::stable_sort(order.begin(), end,
                     [&](size_t a, size_t b) { return args.y_strides[a] > args.y_strides[b]; });
    for (auto dim = order.begin(); dim != end; ++dim) {
      const auto last = static_cast<size_t>(extents.rank++);
      extents.size[last] = args.extents.size[*dim];
      x_strides[last] = args.x_strides[*dim];
      y_strides[last] = args.y_strides[*dim];
    }
  }

  size_t inner() const { return static_cast<size_t>(extents.rank) - 1; }
};

template <class T, int N>
__global__ void copy_kernel(const T* x, T* y, int64_t count, DeviceLoopNest<2> nest) {
  for (int64_t item = grid_thread(); item * N < count; item += grid_threads()) {
    int64_t offsets[2];
    nest.find(item, offsets);
    T values[N];
    load_item(x + offsets[0], nest.repeats(0), count - item * N, values);
    store_elements(y + offsets[1], 0, count - item * N, true, values);
  }
}

/// Squares of y[j * y_stride + i] = x[i * x_stride + j], i < rows, j < cols. The nest is over the squares;
/// its operands are x, y, i and j.
template <class T>
struct Transpose {
  static constexpr int kSide = sizeof(T) <= 2 ? 64 : 32;
  const T* x;
  T* y;
  int64_t rows, cols;
  int64_t x_stride, y_stride;
  int64_t squares;
};

template <class T>
__global__ void transpose_kernel(Transpose<T> args, DeviceLoopNest<4> nest) {
  constexpr int kSide = Transpose<T>::kSide;
  // Columns of the padded square start in different banks.
  constexpr int kPad = sizeof(T) < 4 ? 4 / static_cast<int>(sizeof(T)) : 1;
  __shared__ T square[kSide][kSide + kPad];
  const auto lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int64_t number = blockIdx.x; number < args.squares; number += gridDim.x) {
    int64_t at[4];
    nest.find(number, at);
    const T* const x = args.x + at[0];
    T* const y = args.y + at[1];
    const int64_t rows = args.rows - at[2], cols = args.cols - at[3];
#pragma unroll
    for (int i = warp; i < kSide; i += kWarps) {
#pragma unroll
      for (int j = lane; j < kSide; j += kWarp) {
        if (i < rows && j < cols) square[i][j] = x[i * args.x_stride + j];
      }
    }
    __syncthreads();
#pragma unroll
    for (int j = warp; j < kSide; j += kWarps) {
#pragma unroll
      for (int i = lane; i < kSide; i += kWarp) {
        if (i < rows && j < cols) y[j * args.y_stride + i] = square[i][j];
      }
    }
    __syncthreads();
  }
}

/// y is dense in the nest's last dimension, x in dimension `col`.
template <class T>
void transpose(const CopyNest& nest, size_t col, const T* x, T* y) {
  constexpr int64_t kSide = Transpose<T>::kSide;
  const size_t row = nest.inner();
  Extents squares = nest.extents;
  Strides x_strides = nest.x_strides, y_strides = nest.y_strides, i_strides{}, j_strides{};
  for (const size_t dim : {row, col}) {
    squares.size[dim] = ceil_div(squares.size[dim], kSide);
    x_strides[dim] *= kSide;
    y_strides[dim] *= kSide;
  }
  i_strides[row] = j_strides[col] = kSide;
  const int64_t count = squares.count();
  launch<transpose_kernel<T>>({.grid = grid_for(count, 1), .block = kThreads},
                              Transpose<T>{.x = x,
                                           .y = y,
                                           .rows = nest.extents.size[row],
                                           .cols = nest.extents.size[col],
                                           .x_stride = nest.x_strides[row],
                                           .y_stride = nest.y_strides[col],
                                           .squares = count},
                              DeviceLoopNest<4>(squares, {&x_strides, &y_strides, &i_strides, &j_strides}));
}

template <class T>
void copy_words(const StridedCopy& args) {
  constexpr int64_t kLeastSide = 16;  // less of a square is not worth its barriers
  constexpr int N = kVectorWidth<T>;
  const auto* x = static_cast<const T*>(args.x);
  auto* y = static_cast<T*>(args.y);
  const int64_t count = args.extents.count();
  if (count == 0) return;
  const CopyNest nest(args);
  if (allows_width(N, nest.extents, x, nest.x_strides) && allows_width(N, nest.extents, y, nest.y_strides)) {
    return launch<copy_kernel<T, N>>({.grid = grid_for(ceil_div(count, N)), .block = kThreads}, x, y, count,
                                     DeviceLoopNest<2>(nest.extents, {&nest.x_strides, &nest.y_strides}, N));
  }
  for (size_t dim = 0; nest.extents.rank > 0 && dim < nest.inner(); ++dim) {
    const int64_t side = std::min(nest.extents.size[dim], nest.extents.size[nest.inner()]);
    if (nest.x_strides[dim] == 1 && nest.y_strides[nest.inner()] == 1 && side >= kLeastSide) {
      return transpose(nest, dim, x, y);
    }
  }
  launch<copy_kernel<T, 1>>({.grid = grid_for(count), .block = kThreads}, x, y, count,
                            DeviceLoopNest<2>(nest.extents, {&nest.x_strides, &nest.y_strides}));
}

}  // namespace

void strided_copy(const StridedCopy& args) {
  switch (size_of(args.dtype)) {
    case 1:
      return copy_words<uint8_t>(args);
    case 2:
      return copy_words<uint16_t>(args);
    case 4:
      return copy_words<uint32_t>(args);
    default:
      return copy_words<uint64_t>(args);
  }
}

}  // namespace elwise::cuda
