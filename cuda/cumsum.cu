#include "ops/cumsum_kernels.h"

#include <algorithm>
#include <bit>
#include <cstdint>

#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"
#include "cuda/vector.cuh"

// Running sums of x [outer, length, inner] along its middle dimension. Where inner is 1 a block scans a row,
// tile after tile; else, and for short rows, a thread walks along a vector of columns. Where these are too
// few to fill the device the length is cut in chunks: one launch gives the sums of the chunks, one their
// running sums, and the last starts each chunk from those before it. Tiles, rows and chunks are numbered in
// the order of the sum: from the end where it is reverse. Sums of a few elements are in the arithmetic of the
// elements; what is carried on is in double, so that the error does not grow with the length.

namespace elwise::cuda {
namespace {

constexpr int kWarp = 32;

/// Blocks of rows, or threads of columns, that fill a device: chunks are made until there are as many. The
/// same for every device, so that sums are too.
constexpr int64_t kFullRows = 512, kFullColumns = 32768;

constexpr int64_t kMostChunks = 512;

/// Rows of x that a thread reads before it adds them.
constexpr int kUnroll = 8;

/// A thread walks far, alone: small blocks spread few of them over the device.
constexpr int kColumnThreads = 64;

/// Rows up to this length are for one thread each.
constexpr int64_t kShortRow = 32;

struct CumsumShape {
  int64_t outer, length, inner;
  bool reverse;
  int64_t steps = 0;        // tiles of a row, or rows of x
  int64_t chunk_steps = 0;  // of a chunk
  int64_t chunks = 1;

  /// At most `wanted` chunks of `least` steps or more.
  void cut_in_chunks(int64_t wanted, int64_t least) {
    const int64_t most = std::max<int64_t>(1, std::min(kMostChunks, steps / least));
    chunk_steps = ceil_div(steps, std::clamp<int64_t>(wanted, 1, most));
    chunks = ceil_div(steps, chunk_steps);
  }

  /// That of the chunks' sums, [outer, chunks, inner], in one chunk.
  CumsumShape of_chunks(int64_t steps) const {
    return {outer, chunks, inner, /*reverse=*/false, steps, /*chunk_steps=*/steps};
  }
};

double* chunk_sums(const CumsumShape& shape) {
  const int64_t count = shape.outer * shape.chunks * shape.inner;
  return static_cast<double*>(workspace(count * static_cast<int64_t>(sizeof(double))));
}

/// The sum over the lanes before this one, and over all.
template <class V>
struct WarpScan {
  V before, total;

  __device__ __forceinline__ explicit WarpScan(V value) {
    const auto lane = static_cast<int>(threadIdx.x) % kWarp;
#pragma unroll
    for (int distance = 1; distance < kWarp; distance *= 2) {
      const V earlier = __shfl_up_sync(kAllLanes, value, distance);
      if (lane >= distance) value += earlier;
    }
    const V previous = __shfl_up_sync(kAllLanes, value, 1);
    before = lane > 0 ? previous : V(0);
    total = __shfl_sync(kAllLanes, value, kWarp - 1);
  }
};

/// Where the calling thread's N elements of a tile start in the row.
template <int N>
__device__ __forceinline__ int64_t tile_element(int64_t tile, const CumsumShape& shape) {
  const int64_t vector = tile * blockDim.x + threadIdx.x;
  return (shape.reverse ? shape.steps * blockDim.x - 1 - vector : vector) * N;
}

/// sums[outer, chunk] of rows.
template <class T>
__global__ void sum_row_chunks_kernel(const T* x, double* sums, CumsumShape shape, bool aligned) {
  constexpr int N = kVectorWidth<T>;
  const T* const row = x + blockIdx.x * shape.length;
  const int64_t begin = blockIdx.y * shape.chunk_steps, end = min(begin + shape.chunk_steps, shape.steps);
  double sum = 0;
  for (int64_t tile = begin; tile < end; ++tile) {
    T values[N];
    load_elements(row, tile_element<N>(tile, shape), shape.length, aligned, values);
    Compute<T> of_thread = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) of_thread += static_cast<Compute<T>>(values[i]);
    sum += static_cast<double>(of_thread);
  }
  sum = reduce_block(sum, 0.0);
  if (threadIdx.x == 0) sums[blockIdx.x * shape.chunks + blockIdx.y] = sum;
}

/// `sums` [outer, chunk] are running sums; there is one chunk where they are null.
template <class T>
__global__ void cumsum_rows_kernel(const T* x, T* y, const double* sums, CumsumShape shape, bool aligned) {
  using V = Compute<T>;
  constexpr int N = kVectorWidth<T>;
  __shared__ V warp_totals[2][kThreads / kWarp];
  const auto warp = static_cast<int>(threadIdx.x) / kWarp, warps = static_cast<int>(blockDim.x) / kWarp;
  const int64_t row = blockIdx.x * shape.length;
  const int64_t begin = blockIdx.y * shape.chunk_steps, end = min(begin + shape.chunk_steps, shape.steps);
  double carry = blockIdx.y > 0 ? sums[blockIdx.x * shape.chunks + blockIdx.y - 1] : 0;
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t first = tile_element<N>(tile, shape);
    T values[N];
    load_elements(x + row, first, shape.length, aligned, values);
    V running[N], of_thread = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      of_thread += static_cast<V>(shape.reverse ? values[N - 1 - i] : values[i]);
      running[i] = of_thread;
    }
    const WarpScan<V> scan(of_thread);
    V* const totals = warp_totals[tile % 2];  // those of the last tile may still be read
    if (threadIdx.x % kWarp == 0) totals[warp] = scan.total;
    __syncthreads();
    V before = 0, total = 0;
    for (int i = 0; i < warps; ++i) {
      if (i == warp) before = total;
      total += totals[i];
    }
    const V start = static_cast<V>(carry + static_cast<double>(before + scan.before));
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = T(start + (shape.reverse ? running[N - 1 - i] : running[i]));
    store_elements(y + row, first, shape.length, aligned, values);
    carry += static_cast<double>(total);
  }
}

template <class T>
void cumsum_rows(const T* x, T* y, CumsumShape shape) {
  constexpr int64_t kLeastTiles = 2;
  const int64_t vectors = ceil_div(shape.length, kVectorWidth<T>);
  const auto threads = static_cast<unsigned>(
      std::bit_ceil(static_cast<uint64_t>(std::clamp<int64_t>(vectors, kWarp, kThreads))));
  shape.steps = ceil_div(vectors, threads);
  shape.cut_in_chunks(kFullRows / shape.outer, kLeastTiles);
  const bool aligned = is_aligned(x, y) && (shape.outer == 1 || shape.length % kVectorWidth<T> == 0);
  const auto rows = static_cast<unsigned>(shape.outer), chunks = static_cast<unsigned>(shape.chunks);
  double* sums = nullptr;
  if (shape.chunks > 1) {
    sums = chunk_sums(shape);
    launch<sum_row_chunks_kernel<T>>({.grid = {rows, chunks}, .block = threads}, x, sums, shape, aligned);
    const int64_t tiles = ceil_div(shape.chunks, kThreads * kVectorWidth<double>);
    launch<cumsum_rows_kernel<double>>({.grid = rows, .block = kThreads}, sums, sums, nullptr,
                                       shape.of_chunks(tiles), shape.chunks % kVectorWidth<double> == 0);
  }
  launch<cumsum_rows_kernel<T>>({.grid = {rows, chunks}, .block = threads}, x, y, sums, shape, aligned);
}

enum class Pass : uint8_t { chunk_sums, outputs };

/// Pass::outputs reads the running sums of the chunks in `sums` [outer, chunks, inner] and writes y;
/// Pass::chunk_sums writes `sums`.
template <Pass pass, class T, int N>
__global__ void cumsum_columns_kernel(const T* x, T* y, double* sums, CumsumShape shape) {
  using V = Compute<T>;
  const int64_t vectors = shape.inner / N;
  const int64_t outer = grid_thread() / vectors, column = grid_thread() % vectors * N;
  if (outer >= shape.outer) return;
  const int64_t begin = blockIdx.y * shape.chunk_steps, end = min(begin + shape.chunk_steps, shape.steps);
  const int64_t distance = shape.reverse ? -shape.inner : shape.inner;
  const int64_t first_row = outer * shape.length + (shape.reverse ? shape.length - 1 - begin : begin);
  const int64_t chunk = (outer * shape.chunks + blockIdx.y) * shape.inner + column;  // in sums

  double carry[N];
#pragma unroll
  for (int i = 0; i < N; ++i) {
    carry[i] = pass == Pass::outputs && blockIdx.y > 0 ? sums[chunk - shape.inner + i] : 0;
  }
  int64_t offset = first_row * shape.inner + column;
  for (int64_t row = begin; row < end; row += kUnroll, offset += kUnroll * distance) {
    T values[kUnroll][N];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      load_elements(x + offset + u * distance, 0, row + u < end ? N : 0, true, values[u]);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const V start = static_cast<V>(carry[i]);
      V running = 0;
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        running += static_cast<V>(values[u][i]);
        values[u][i] = T(start + running);
      }
      carry[i] += static_cast<double>(running);
    }
    if constexpr (pass == Pass::outputs) {
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        store_elements(y + offset + u * distance, 0, row + u < end ? N : 0, true, values[u]);
      }
    }
  }
  if constexpr (pass == Pass::chunk_sums) {
#pragma unroll
    for (int i = 0; i < N; ++i) sums[chunk + i] = carry[i];
  }
}

template <Pass pass, int N, class T>
void launch_columns(const T* x, T* y, double* sums, const CumsumShape& shape) {
  const auto blocks = static_cast<unsigned>(ceil_div(shape.outer * shape.inner / N, kColumnThreads));
  launch<cumsum_columns_kernel<pass, T, N>>(
      {.grid = {blocks, static_cast<unsigned>(shape.chunks)}, .block = kColumnThreads}, x, y, sums, shape);
}

template <int N, class T>
void cumsum_columns(const T* x, T* y, CumsumShape shape) {
  constexpr int64_t kLeastRows = 4 * kUnroll;
  shape.steps = shape.length;
  shape.cut_in_chunks(kFullColumns / (shape.outer * shape.inner / N), kLeastRows);
  double* sums = nullptr;
  if (shape.chunks > 1) {
    sums = chunk_sums(shape);
    launch_columns<Pass::chunk_sums, N>(x, y, sums, shape);
    launch_columns<Pass::outputs, 1>(sums, sums, nullptr, shape.of_chunks(shape.chunks));
  }
  launch_columns<Pass::outputs, N>(x, y, sums, shape);
}

}  // namespace

void cumsum(const Cumsum& args) {
  if (args.outer * args.length * args.inner == 0) return;
  dispatch_floating(args.dtype, "cumsum", [&]<class T>() {
    constexpr int N = kVectorWidth<T>;
    const auto* x = static_cast<const T*>(args.x);
    auto* y = static_cast<T*>(args.y);
    const CumsumShape shape{args.outer, args.length, args.inner, args.reverse};
    if (args.inner == 1 && args.length > kShortRow) {
      cumsum_rows(x, y, shape);
    } else if (args.inner % N == 0 && is_aligned(x, y)) {
      cumsum_columns<N>(x, y, shape);
    } else {
      cumsum_columns<1>(x, y, shape);
    }
  });
}

}  // namespace elwise::cuda
