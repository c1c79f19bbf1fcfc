#pragma once

#include "cuda/launch.cuh"
#include "cuda/vector.cuh"
#include "ops/linear_attention_kernels.h"

// What the kernels of linear attention share; ops/linear_attention_kernels.h has the mathematics.
//
// A sequence is cut in chunks of linear_attention_chunk() rows. One kernel sums up the state of every chunk
// on its own, a second one adds up those before it (or behind it), and a third answers every tile of kTile
// rows: from the state, and from the rows of its chunk that it sees, pair by pair. All of it is products a^T
// b of tiles in shared memory, 128 threads with a small block of the result in registers each.

namespace elwise::cuda::linear_attention {

inline constexpr int kBlock = 128;

/// Rows and columns of a tile, how deep its operands are staged, and the step of its rows in shared memory.
template <class C>
inline constexpr int kTile = sizeof(C) == 8 ? 32 : 64;
template <class C>
inline constexpr int kDepth = kTile<C> / 2;
template <class C>
inline constexpr int kStep = kTile<C> + kVectorWidth<C>;
/// Threads that share a row's scalar sums.
template <class C>
inline constexpr int kParts = kBlock / kTile<C>;

template <class C, int kRows>
struct alignas(kVectorBytes) Tile {
  C at[kRows][kStep<C>];
};

/// N neighbours in shared memory, aligned to 16 bytes.
template <class C, int N>
__device__ __forceinline__ void read_tile(const C* from, C (&values)[N]) {
#pragma unroll
  for (int i = 0; i < N; i += kVectorWidth<C>) {
    const auto part = load<kVectorWidth<C>>(from + i);
#pragma unroll
    for (int j = 0; j < kVectorWidth<C>; ++j) values[i + j] = part.at[j];
  }
}
template <class C, int N>
__device__ __forceinline__ void write_tile(C* to, const C (&values)[N]) {
#pragma unroll
  for (int i = 0; i < N; i += kVectorWidth<C>) {
    Vector<C, kVectorWidth<C>> part;
#pragma unroll
    for (int j = 0; j < kVectorWidth<C>; ++j) part.at[j] = values[i + j];
    store(to + i, part);
  }
}

/// The calling thread's part of a product of tiles.
template <class C>
struct Product {
  static constexpr int kRows = kTile<C> / 8, kCols = kTile<C> / 16;
  C at[kRows][kCols] = {};

  static __device__ __forceinline__ int row() { return static_cast<int>(threadIdx.x) / 16 * kRows; }
  static __device__ __forceinline__ int col() { return static_cast<int>(threadIdx.x) % 16 * kCols; }

  /// Adds a^T b of rows [begin, end).
  __device__ __forceinline__ void add(const C (*a)[kStep<C>], const C (*b)[kStep<C>], int begin, int end) {
#pragma unroll 4
    for (int k = begin; k < end; ++k) {
      add_where(a, b, k, [](int) { return true; });
    }
  }

  /// Of row k, for the result's rows i (of the thread's) that `meets` names.
  template <class Meets>
  __device__ __forceinline__ void add_where(const C (*a)[kStep<C>], const C (*b)[kStep<C>], int k,
                                            const Meets& meets) {
    C of_a[kRows], of_b[kCols];
    read_tile(a[k] + row(), of_a);
    read_tile(b[k] + col(), of_b);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kCols; ++j) at[i][j] = meets(i) ? fma(of_a[i], of_b[j], at[i][j]) : at[i][j];
    }
  }
};

/// phi(x) = elu(x) + 1, and its derivative.
template <class C>
__device__ __forceinline__ C feature(C x) {
  return x > C(0) ? x + C(1) : exp(x);
}
template <class C>
__device__ __forceinline__ C feature_slope(C x) {
  return x > C(0) ? C(1) : exp(x);
}

/// What the kernels work on.
template <class T>
struct Problem {
  using C = Compute<T>;
  const T* q;
  const T* k;
  const T* v;
  const T* dy = nullptr;           // backward only, as b
  const C* denominator = nullptr;  // [batch, heads, length]
  const C* b = nullptr;            // [batch, heads, length]
  const bool* key_mask;            // [batch, length] or null
  C* sums;                         // [batch, heads, chunks, head + 1, head]
  int length, heads, head;
  int chunk;  // rows
  bool causal;
  bool aligned;  // rows of all tensors allow 16-byte accesses

  __device__ __forceinline__ int64_t step() const { return int64_t{heads} * head; }
  __device__ __forceinline__ int64_t state_size() const { return int64_t{head + 1} * head; }
  __host__ __device__ __forceinline__ int chunks() const { return (length + chunk - 1) / chunk; }
};

/// The part that all contracts have. `aligned`: their tensors' starts allow 16-byte accesses.
template <class T, class Arguments>
Problem<T> problem_of(const Arguments& args, bool causal, bool aligned) {
  return {.q = static_cast<const T*>(args.q),
          .k = static_cast<const T*>(args.k),
          .v = static_cast<const T*>(args.v),
          .key_mask = args.key_mask,
          .sums = static_cast<Compute<T>*>(args.sums),
          .length = static_cast<int>(args.length),
          .heads = static_cast<int>(args.heads),
          .head = static_cast<int>(args.head),
          .chunk = static_cast<int>(linear_attention_chunk(args.head)),
          .causal = causal,
          .aligned = aligned && args.head % kVectorWidth<T> == 0};
}

/// One head of one batch entry.
template <class T>
struct Head {
  using C = Compute<T>;
  const Problem<T>& problem;
  int64_t first;          // its first element in tensors [batch, length, heads * head]
  const bool* mask;       // [length] or null
  const C* denominators;  // [length], as b
  const C* b;

  __device__ __forceinline__ Head(const Problem<T>& of, int pair)
      : problem(of),
        first(int64_t{pair / of.heads} * of.length * of.step() + pair % of.heads * of.head),
        mask(of.key_mask != nullptr ? of.key_mask + int64_t{pair / of.heads} * of.length : nullptr),
        denominators(of.denominator != nullptr ? of.denominator + int64_t{pair} * of.length : nullptr),
        b(of.b != nullptr ? of.b + int64_t{pair} * of.length : nullptr) {}

  /// Of a tensor like q.
  __device__ __forceinline__ int64_t at(int row, int c = 0) const { return first + row * problem.step() + c; }
  __device__ __forceinline__ bool is_visible(int row) const { return mask == nullptr || mask[row]; }
};

/// phi(q), phi(k), v and a: phi(k) and v are 0 for hidden keys, whatever they hold, and a for queries that
/// are answered directly. In scaled queries the largest feature of a row is 1 or more.
enum class Operand : uint8_t { query, scaled_query, key, value, gradient };

template <Operand kOperand>
inline constexpr bool kIsFeatures = kOperand != Operand::value&& kOperand != Operand::gradient;

/// The rows of an operand of one head; 0 beyond the sequence and the head.
template <Operand kOperand, class T>
struct Rows {
  using C = Compute<T>;
  static constexpr int kWidth = kVectorWidth<T>;
  const Head<T>& head;
  const T* tensor;
  const C* shifts;  // of scaled queries, from row `first_shift` on
  int first_shift;

  __device__ __forceinline__ explicit Rows(const Head<T>& of, const C* of_rows = nullptr, int from = 0)
      : head(of),
        tensor(kOperand == Operand::key        ? of.problem.k
               : kOperand == Operand::value    ? of.problem.v
               : kOperand == Operand::gradient ? of.problem.dy
                                               : of.problem.q),
        shifts(of_rows),
        first_shift(from) {}

  __device__ __forceinline__ void read(int index, int col, C (&values)[kWidth]) const {
    const int length = head.problem.length, width = head.problem.head;
    C factor = index < length ? C(1) : C(0);
    if (index < length) {
      if constexpr (kOperand == Operand::key || kOperand == Operand::value) {
        factor = head.is_visible(index) ? C(1) : C(0);
      } else if constexpr (kOperand == Operand::gradient) {
        const C denominator = head.denominators[index];
        factor = denominator == C(0) ? C(0) : 1 / denominator;
      }
    }
    T stored[kWidth] = {};
    if (factor != C(0)) {
      load_elements(tensor + head.at(index), col, width, head.problem.aligned, stored);
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      C value = static_cast<C>(stored[i]);
      if constexpr (kOperand == Operand::scaled_query) {
        const C shift = shifts[index - first_shift];
        value = value > C(0) ? value + C(1) : exp(value - shift);
      } else if constexpr (kIsFeatures<kOperand>) {
        value = feature(value);
      } else if constexpr (kOperand == Operand::gradient) {
        value *= factor;
      }
      values[i] = factor != C(0) && col + i < width ? value : C(0);
    }
  }
};

/// The rows of a state [head + 1, head], but for the last one.
template <class C>
struct StateRows {
  static constexpr int kWidth = kVectorWidth<C>;
  const C* state;
  int head;
  bool aligned;

  __device__ __forceinline__ void read(int index, int col, C (&values)[kWidth]) const {
    if (index < head) {
      load_elements(state + int64_t{index} * head, col, head, aligned, values);
    } else {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) values[i] = C(0);
    }
  }
};

/// to[i][j] = element (row + i, col + j) of `from`, for kRows rows and a tile's columns.
template <int kRows, class From, class C>
__device__ __forceinline__ void load_rows(const From& from, int row, int col, C (*to)[kStep<C>]) {
  constexpr int kWidth = From::kWidth, kPieces = kTile<C> / kWidth;
#pragma unroll 1  // more at a time would not fit the registers of 4 blocks on a multiprocessor
  for (int i = 0; i < kRows * kPieces / kBlock; ++i) {
    const int index = i * kBlock + static_cast<int>(threadIdx.x), at = index % kPieces * kWidth;
    C values[kWidth];
    from.read(row + index / kPieces, col + at, values);
    write_tile(to[index / kPieces] + at, values);
  }
}

/// to[j][i] = the same, for kCols columns and a tile's rows. A warp takes 16 rows and two pieces of each: it
/// reads whole sectors, and writes without bank conflicts.
template <int kCols, class From, class C>
__device__ __forceinline__ void load_columns(const From& from, int row, int col, C (*to)[kStep<C>]) {
  constexpr int kWidth = From::kWidth, kPieces = kCols / kWidth;
#pragma unroll 1  // more at a time would not fit the registers of 4 blocks on a multiprocessor
  for (int i = 0; i < kTile<C> * kPieces / kBlock; ++i) {
    const int index = i * kBlock + static_cast<int>(threadIdx.x), own = index / 2 % kTile<C>,
              at = (index / (2 * kTile<C>)*2 + index % 2) * kWidth;
    C values[kWidth];
    from.read(row + own, col + at, values);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) to[at + j][own] = values[j];
  }
}

/// sums[.., chunk]: of the chunk's rows, features^T values and, as one more row, the sum of features: S and z
/// of keys and values, or A and, weighted by b, B of queries and gradients. A block per pair of batch entry
/// and head, chunk, and tile of the state.
template <Operand kFeatures, Operand kValues, class T>
__global__ void __launch_bounds__(kBlock, 4) chunk_sums_kernel(Problem<T> problem) {
  using C = Compute<T>;
  constexpr int kSize = kTile<C>;
  __shared__ Tile<C, kDepth<C>> features, values;
  __shared__ C parts[kParts<C>][kSize];
  const int panels = (problem.head + kSize - 1) / kSize, chunks = problem.chunks();
  const int first_value = static_cast<int>(blockIdx.x % panels) * kSize;
  const int first_feature = static_cast<int>(blockIdx.x / panels % panels) * kSize;
  const int item = static_cast<int>(blockIdx.x / panels / panels);
  const Head<T> head(problem, item / chunks);
  const int begin = item % chunks * problem.chunk;
  const int end = min(begin + problem.chunk, problem.length);
  const int own = static_cast<int>(threadIdx.x) % kSize, part = static_cast<int>(threadIdx.x) / kSize;
  const Rows<kFeatures, T> feature_rows(head);
  const Rows<kValues, T> value_rows(head);
  Product<C> product;
  C sum = 0;  // of feature first_feature + own
  for (int row = begin; row < end; row += kDepth<C>) {
    const int count = min(kDepth<C>, end - row);
    __syncthreads();
    load_rows<kDepth<C>>(feature_rows, row, first_feature, features.at);
    load_rows<kDepth<C>>(value_rows, row, first_value, values.at);
    __syncthreads();
    product.add(features.at, values.at, 0, count);
    if (first_value != 0) continue;
    for (int i = part; i < count; i += kParts<C>) {
      const C weight = kValues == Operand::gradient ? head.b[row + i] : C(1);
      sum = fma(features.at[i][own], weight, sum);
    }
  }
  C* const state = problem.sums + item * problem.state_size();
#pragma unroll
  for (int i = 0; i < Product<C>::kRows; ++i) {
    const int row = first_feature + product.row() + i;
    if (row >= problem.head) continue;
    store_elements(state + int64_t{row} * problem.head, first_value + product.col(), problem.head,
                   problem.aligned, product.at[i]);
  }
  if (first_value != 0) return;
  parts[part][own] = sum;
  __syncthreads();
  if (part != 0 || first_feature + own >= problem.head) return;
  for (int other = 1; other < kParts<C>; ++other) sum += parts[other][own];
  state[int64_t{problem.head} * problem.head + first_feature + own] = sum;
}

/// How the states of chunks are added up.
template <class C>
struct Combination {
  C* sums;  // [pairs, chunks, size]
  int64_t pairs, chunks, size;
  bool causal;    // in place: each chunk's becomes that of the chunks before it, or
  bool backward;  // of those behind it
  C* total;       // [pairs, total_step], of which the first `size`; may be null
  int64_t total_step;
  C* s = nullptr;  // [pairs, head, head] and z [pairs, head]: a state to start from, which receives the last
  C* z = nullptr;
  int64_t head = 0;

  __device__ __forceinline__ C& carried(int64_t pair, int64_t element) const {
    return element < head * head ? s[pair * head * head + element] : z[pair * head + element - head * head];
  }
};

/// A thread per element of a pair's state.
template <class C>
__global__ void combine_chunks_kernel(Combination<C> args) {
  const int64_t item = grid_thread();
  if (item >= args.pairs * args.size) return;
  const int64_t pair = item / args.size, element = item % args.size;
  C* const own = args.sums + pair * args.chunks * args.size + element;
  C total = args.s != nullptr ? args.carried(pair, element) : C(0);
#pragma unroll 4
  for (int64_t step = 0; step < args.chunks; ++step) {
    C* const at = own + (args.backward ? args.chunks - 1 - step : step) * args.size;
    const C addend = *at;
    if (args.causal) *at = total;
    total += addend;
  }
  if (args.total != nullptr) args.total[pair * args.total_step + element] = total;
  if (args.s != nullptr) args.carried(pair, element) = total;
}

template <Operand kFeatures, Operand kValues, class T>
void sum_chunks(const Problem<T>& problem, int64_t pairs) {
  const int64_t panels = ceil_div(problem.head, kTile<Compute<T>>);
  launch<chunk_sums_kernel<kFeatures, kValues, T>>(
      {.grid = static_cast<unsigned>(pairs * problem.chunks() * panels * panels), .block = kBlock}, problem);
}

template <class C>
void combine_chunks(const Combination<C>& args) {
  launch<combine_chunks_kernel<C>>(
      {.grid = static_cast<unsigned>(ceil_div(args.pairs * args.size, kThreads)), .block = kThreads}, args);
}

}  // namespace elwise::cuda::linear_attention
