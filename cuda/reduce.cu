#include "ops/reduce_kernels.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"
#include "cuda/vector.cuh"

// Sums and maxima of x [outer, reduced, inner] along its middle dimension: one kernel for every shape. A step
// is a row of x, of which a thread takes a vector of columns; where inner is 1 it is a vector of the row. The
// threads of a block are spread over columns, steps and outer, columns fastest, so that they read neighbours
// in memory. Where the results are too few to fill the device the steps are cut in chunks, and a second
// launch reduces what these give.

namespace elwise::cuda {
namespace {

/// Steps that a thread reads before it adds them.
constexpr int kUnroll = 4;

/// Blocks that fill a device: chunks are made until there are as many. The same for every device, so that
/// sums are too.
constexpr int64_t kFullGrid = 512;

constexpr int kWarp = 32;

struct ReduceShape {
  int64_t outer, reduced, inner;
  int64_t steps;
  int64_t chunk_steps;     // of a block
  int column_lanes;        // threads side by side, each for a vector of columns; a power of two
  int step_lanes;          // threads that share the steps of a column; a power of two
  unsigned column_blocks;  // blocks for the columns of one outer index

  ReduceShape(int64_t outer, int64_t reduced, int64_t inner, int width)
      : outer(outer), reduced(reduced), inner(inner), steps(inner == 1 ? ceil_div(reduced, width) : reduced) {
    const auto power_of_two = [](int64_t n, int64_t most) {
      return static_cast<int>(std::bit_ceil(static_cast<uint64_t>(std::clamp<int64_t>(n, 1, most))));
    };
    const int64_t vectors = ceil_div(inner, width);
    column_lanes = power_of_two(vectors, kWarp);
    column_blocks = static_cast<unsigned>(ceil_div(vectors, column_lanes));
    step_lanes = power_of_two(ceil_div(steps, kUnroll), kThreads / column_lanes);
    chunk_steps = std::max<int64_t>(1, steps);
  }

  void cut_in_chunks() {
    const int64_t wanted = kFullGrid / (outer_blocks() * column_blocks);
    const int64_t most = steps / (2 * kUnroll * step_lanes);  // with less, a chunk is not worth a block
    chunk_steps = ceil_div(chunk_steps, std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, most)));
  }

  int64_t chunks() const { return std::max<int64_t>(1, ceil_div(steps, chunk_steps)); }
  int outer_lanes() const { return kThreads / (column_lanes * step_lanes); }
  int64_t outer_blocks() const { return ceil_div(outer, outer_lanes()); }
};

/// Adds in double; of f32 and bf16 the terms that a thread reads together first in f32.
template <class T>
struct Sum {
  using Partial = double;
  T* y;

  static __device__ __forceinline__ double identity() { return 0; }
  template <class Source>
  static __device__ __forceinline__ Source missing() {
    return Source(0.0F);
  }
  template <class V>
  static __device__ __forceinline__ double add(double sum, const V (&terms)[kUnroll], int64_t, int64_t) {
    static_assert(kUnroll == 4);
    return sum + static_cast<double>((terms[0] + terms[1]) + (terms[2] + terms[3]));
  }
  static __device__ __forceinline__ double combine(double a, double b) { return a + b; }
  static __device__ __forceinline__ double shuffle_xor(double sum, int lanes) {
    return __shfl_xor_sync(kAllLanes, sum, lanes);
  }
  __device__ __forceinline__ void write(int64_t i, double sum) const {
    y[i] = T(static_cast<Compute<T>>(sum));
  }
};

template <class V>
struct Largest {
  V value;
  int64_t index;
};

/// The largest value and the first place where it stands; a NaN is larger than all.
template <class T>
struct Max {
  using V = Compute<T>;
  using Partial = Largest<V>;
  T* y;
  int64_t* index;

  static __device__ __forceinline__ Partial identity() { return {V(-INFINITY), INT64_MAX}; }
  template <class Source>
  static __device__ __forceinline__ Source missing() {
    if constexpr (std::is_same_v<Source, Partial>) {
      return identity();
    } else {
      return Source(-INFINITY);  // stands after all others, so that it is not found
    }
  }
  static __device__ __forceinline__ Partial add(Partial largest, const V (&terms)[kUnroll], int64_t first,
                                                int64_t distance) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) largest = combine(largest, {terms[u], first + u * distance});
    return largest;
  }
  static __device__ __forceinline__ Partial add(Partial largest, const Partial (&terms)[kUnroll], int64_t,
                                                int64_t) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) largest = combine(largest, terms[u]);
    return largest;
  }
  static __device__ __forceinline__ Partial combine(const Partial& a, const Partial& b) {
    const bool a_is_nan = a.value != a.value, b_is_nan = b.value != b.value;
    const bool tie = a.value == b.value || (a_is_nan && b_is_nan);
    const bool larger = b.value > a.value || (b_is_nan && !a_is_nan);
    return larger || (tie && b.index < a.index) ? b : a;
  }
  static __device__ __forceinline__ Partial shuffle_xor(const Partial& from, int lanes) {
    return {__shfl_xor_sync(kAllLanes, from.value, lanes), __shfl_xor_sync(kAllLanes, from.index, lanes)};
  }
  __device__ __forceinline__ void write(int64_t i, const Partial& largest) const {
    y[i] = T(largest.value);
    index[i] = largest.index;
  }
};

/// `partials` [outer, chunks, inner] takes the result where it is not null. `x` holds such partial results in
/// the second launch.
template <class Reduction, class Source, int N>
__global__ void reduce_kernel(const Source* x, Reduction reduction, typename Reduction::Partial* partials,
                              ReduceShape shape) {
  using Partial = typename Reduction::Partial;
  const auto thread = static_cast<int>(threadIdx.x);
  const int group = shape.column_lanes * shape.step_lanes;  // threads of an outer index
  const int step_lane = thread % group / shape.column_lanes;
  const int64_t outer = int64_t{blockIdx.x / shape.column_blocks} * (kThreads / group) + thread / group;
  const int64_t column =
      (int64_t{blockIdx.x % shape.column_blocks} * shape.column_lanes + thread % shape.column_lanes) * N;
  const bool exists = outer < shape.outer && column < shape.inner;
  const bool along_row = shape.inner == 1;

  Partial result[N];
#pragma unroll
  for (int i = 0; i < N; ++i) result[i] = Reduction::identity();
  const int64_t pitch = along_row ? N : shape.inner, begin = int64_t{blockIdx.y} * shape.chunk_steps;
  const int64_t end = exists ? min(begin + shape.chunk_steps, shape.steps) : 0;
  const Source* const from = x + outer * shape.reduced * shape.inner + column;
  for (int64_t step = begin + step_lane; step < end; step += kUnroll * shape.step_lanes) {
    Source values[kUnroll][N];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t at = step + u * shape.step_lanes, first = at * pitch;
      const int64_t readable = at >= end ? 0 : along_row ? shape.reduced : first + N;
      load_elements(from, first, readable, true, values[u], Reduction::template missing<Source>());
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
      Compute<Source> terms[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) terms[u] = static_cast<Compute<Source>>(values[u][i]);
      const int64_t distance = along_row ? int64_t{shape.step_lanes} * N : shape.step_lanes;
      result[i] = Reduction::add(result[i], terms, along_row ? step * N + i : step, distance);
    }
  }

  const int columns = along_row ? 1 : N;
  if (along_row) {
#pragma unroll
    for (int i = 1; i < N; ++i) result[0] = Reduction::combine(result[0], result[i]);
  }
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (i == columns) break;
    for (int lanes = shape.column_lanes; lanes < min(group, kWarp); lanes *= 2) {
      result[i] = Reduction::combine(result[i], Reduction::shuffle_xor(result[i], lanes));
    }
  }
  if (group > kWarp) {
    __shared__ Partial of_warps[N][kThreads];
#pragma unroll
    for (int i = 0; i < N; ++i) of_warps[i][thread] = result[i];
    __syncthreads();
    for (int other = kWarp; step_lane == 0 && other < group; other += kWarp) {
#pragma unroll
      for (int i = 0; i < N; ++i) result[i] = Reduction::combine(result[i], of_warps[i][thread + other]);
    }
  }
  if (!exists || step_lane != 0) return;
  const int64_t place = (outer * gridDim.y + blockIdx.y) * shape.inner + column;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    if (i == columns) break;
    if (partials != nullptr) {
      partials[place + i] = result[i];
    } else {
      reduction.write(place + i, result[i]);
    }
  }
}

template <int N, class Reduction, class Source>
void run_reduction(const Source* x, const Reduction& reduction, typename Reduction::Partial* partials,
                   const ReduceShape& shape) {
  const auto blocks = static_cast<unsigned>(shape.outer_blocks()) * shape.column_blocks;
  launch<reduce_kernel<Reduction, Source, N>>(
      {.grid = {blocks, static_cast<unsigned>(shape.chunks())}, .block = kThreads}, x, reduction, partials,
      shape);
}

template <int N, class T, class Reduction, class Arguments>
void reduce_in_chunks(const T* x, const Reduction& reduction, const Arguments& args) {
  using Partial = typename Reduction::Partial;
  ReduceShape shape(args.outer, args.reduced, args.inner, N);
  shape.cut_in_chunks();
  const int64_t chunks = shape.chunks();
  if (chunks == 1) return run_reduction<N>(x, reduction, nullptr, shape);
  const int64_t bytes = args.outer * chunks * args.inner * static_cast<int64_t>(sizeof(Partial));
  auto* partials = static_cast<Partial*>(workspace(bytes));
  run_reduction<N>(x, reduction, partials, shape);
  run_reduction<1>(static_cast<const Partial*>(partials), reduction, nullptr,
                   ReduceShape(args.outer, chunks, args.inner, 1));
}

template <class T, class Reduction, class Arguments>
void reduce(const Reduction& reduction, const Arguments& args) {
  if (args.outer * args.inner == 0) return;
  constexpr int N = kVectorWidth<T>;
  const auto* x = static_cast<const T*>(args.x);
  const bool rows_aligned = args.inner > 1 ? args.inner % N == 0 : args.outer == 1 || args.reduced % N == 0;
  if (is_aligned(x) && rows_aligned) {
    reduce_in_chunks<N>(x, reduction, args);
  } else {
    reduce_in_chunks<1>(x, reduction, args);
  }
}

}  // namespace

void sum_forward(const SumForward& args) {
  dispatch_floating(args.dtype, "sum_forward",
                    [&]<class T>() { reduce<T>(Sum<T>{static_cast<T*>(args.y)}, args); });
}

void max_forward(const MaxForward& args) {
  ELWISE_CHECK(args.reduced > 0 || args.outer * args.inner == 0,
               "max_forward: expected at least one element to reduce, got none");
  dispatch_floating(args.dtype, "max_forward", [&]<class T>() {
    reduce<T>(Max<T>{static_cast<T*>(args.y), args.index}, args);
  });
}

}  // namespace elwise::cuda
