#pragma once

#include "cuda/linear_attention.cuh"
#include "cuda/reduce.cuh"

// The kernel that answers tiles of rows. With operands X of the tile's own rows, and Y and Z of the other
// rows s that meet them, a row r gets M^T X_r + sum_s (X_r . Y_s) Z_s, M being the state of the chunks before
// (or behind) it. The gradients of features have one more element in X, Y and M: see Answer.

namespace elwise::cuda::linear_attention {

/// What rows get, of X, Y, Z and M:
///   outputs          phi(q), phi(k), v, S         divided by the denominator, the same of Z = 1 and M = z
///   scaled_outputs   the same of scaled queries, 0 where the denominator is
///   query_gradients  (a, b), (v, 1), phi(k), S^T with z as one more row
///   key_gradients    (v, 1), (a, b), phi(q), A^T with B
///   value_gradients  phi(k), phi(q), a, A
enum class Answer : uint8_t { outputs, scaled_outputs, query_gradients, key_gradients, value_gradients };

template <Answer kAnswer>
struct AnswerTraits {
  static constexpr bool kForward = kAnswer == Answer::outputs || kAnswer == Answer::scaled_outputs;
  static constexpr bool kOfFeatures = kAnswer == Answer::query_gradients || kAnswer == Answer::key_gradients;
  /// Causal: whether rows up to a row meet it, or those from it on.
  static constexpr bool kUpTo = kForward || kAnswer == Answer::query_gradients;
  static constexpr Operand kQuery =
      kAnswer == Answer::scaled_outputs ? Operand::scaled_query : Operand::query;
  static constexpr Operand kOwn = kForward                             ? kQuery
                                  : kAnswer == Answer::query_gradients ? Operand::gradient
                                  : kAnswer == Answer::key_gradients   ? Operand::value
                                                                       : Operand::key;
  static constexpr Operand kOther = kForward                             ? Operand::key
                                    : kAnswer == Answer::query_gradients ? Operand::value
                                    : kAnswer == Answer::key_gradients   ? Operand::gradient
                                                                         : Operand::query;
  static constexpr Operand kSummed = kForward                             ? Operand::value
                                     : kAnswer == Answer::query_gradients ? Operand::key
                                     : kAnswer == Answer::key_gradients   ? Operand::query
                                                                          : Operand::gradient;
};

/// M of a pair and chunk: [pairs, .., head + 1, head].
template <class C>
struct States {
  const C* first;
  int64_t of_pair;
  int64_t of_chunk;  // 0: one for all
  bool is_carried;   // the first chunk's is not 0
};

/// Adds a^T b of kDepth rows of a (from `begin` on in its tile) to those rows of the result that they meet in
/// a tile on the diagonal. Pairs that do not meet add nothing, whatever b holds, and cost little.
template <bool kUpTo, class C>
__device__ __forceinline__ void add_diagonal(const C (*a)[kStep<C>], const C (*b)[kStep<C>], int begin,
                                             int count, Product<C>& product) {
  constexpr int kRows = Product<C>::kRows;
  const int first = min(max(product.row() - begin, 0), count),
            last = min(max(product.row() + kRows - begin, 0), count);
  product.add(a, b, kUpTo ? 0 : last, kUpTo ? first : count);
#pragma unroll 1
  for (int k = first; k < last; ++k) {
    const int diagonal = begin + k - product.row();
    product.add_where(a, b, k, [=](int i) { return kUpTo ? diagonal <= i : diagonal >= i; });
  }
}

/// The largest element of each of a tile's queries, or 0: what their features are scaled by.
template <class T>
__device__ __forceinline__ void find_shifts(const Head<T>& head, int first, Compute<T>* shifts) {
  using C = Compute<T>;
  const int width = head.problem.head;
  for (int i = static_cast<int>(threadIdx.x) / 32; i < kTile<C>; i += kBlock / 32) {
    C largest = -C(INFINITY);
    for (int c = static_cast<int>(threadIdx.x) % 32; c < width && first + i < head.problem.length; c += 32) {
      largest = Larger()(static_cast<C>(head.problem.q[head.at(first + i, c)]), largest);
    }
    largest = reduce_warp(largest, Larger());
    if (threadIdx.x % 32 == 0) shifts[i] = largest > C(0) ? C(0) : largest;
  }
}

template <class C>
struct AnswerMemory {
  Tile<C, kTile<C>> own, pairs;  // X transposed; X . Y, a row for each other row
  Tile<C, kDepth<C>> stage;
  C parts[kParts<C>][kTile<C>];
  C shifts[kTile<C>];
};

/// A tile of answers, of one pair of batch entry and head.
template <Answer kAnswer, class T>
class AnswerTile {
 public:
  using C = Compute<T>;
  using Traits = AnswerTraits<kAnswer>;

  __device__ __forceinline__ AnswerTile(const Problem<T>& problem, int pair, int first_row, int first_col,
                                        AnswerMemory<C>& memory)
      : problem_(problem),
        pair_(pair),
        head_(problem, pair),
        width_(problem.head),
        first_row_(first_row),
        first_col_(first_col),
        chunk_(first_row / problem.chunk),
        memory_(memory) {
    if constexpr (kAnswer == Answer::scaled_outputs) {
      find_shifts(head_, first_row, memory.shifts);
    }
  }

  /// Adds M^T X.
  __device__ __forceinline__ void add_state(const States<C>& states) {
    const bool is_first = chunk_ == (Traits::kUpTo ? 0 : problem_.chunks() - 1);
    if (problem_.causal && is_first && !states.is_carried) return;
    const C* const state = states.first + pair_ * states.of_pair + chunk_ * states.of_chunk;
    const C* const last = state + int64_t{width_} * width_;
    const StateRows<C> rows{state, width_, problem_.aligned};
    for (int c = 0; c < width_; c += kSize) {
      load_own(c);
      for (int half = 0; half < kSize && c + half < width_; half += kHalf) {
        __syncthreads();
        if constexpr (Traits::kOfFeatures) {
          load_columns<kHalf>(rows, first_col_, c + half, memory_.stage.at);
        } else {
          load_rows<kHalf>(rows, c + half, first_col_, memory_.stage.at);
        }
        __syncthreads();
        answer_.add(memory_.own.at + half, memory_.stage.at, 0, min(kHalf, width_ - c - half));
      }
      if constexpr (Traits::kForward) {
        for (int i = part(); i < min(kSize, width_ - c); i += kParts<C>) {
          denominator_ = fma(memory_.own.at[i][tile_row()], last[c + i], denominator_);
        }
      }
    }
    has_own_ = width_ <= kSize;
    if constexpr (Traits::kOfFeatures) {
#pragma unroll
      for (int i = 0; i < Product<C>::kRows; ++i) {
        const int row = first_row_ + answer_.row() + i;
        const C factor = kAnswer == Answer::key_gradients ? C(1)
                         : row < problem_.length          ? head_.b[row]
                                                          : C(0);
#pragma unroll
        for (int j = 0; j < Product<C>::kCols; ++j) {
          const int col = first_col_ + answer_.col() + j;
          if (col < width_) answer_.at[i][j] = fma(factor, last[col], answer_.at[i][j]);
        }
      }
    }
  }

  /// Adds sum_s (X . Y_s) Z_s over the chunk's rows.
  __device__ __forceinline__ void add_pairs() {
    const int begin = Traits::kUpTo ? chunk_ * problem_.chunk : first_row_;
    const int end = Traits::kUpTo ? first_row_ + kSize : min((chunk_ + 1) * problem_.chunk, problem_.length);
    const Rows<Traits::kSummed, T> summed(head_);
    for (int other = begin; other < end; other += kSize) {
      multiply_pairs(other);
      const int count = min(kSize, problem_.length - other);
      for (int half = 0; half < count; half += kHalf) {
        __syncthreads();
        load_rows<kHalf>(summed, other + half, first_col_, memory_.stage.at);
        __syncthreads();
        const auto* const rows = memory_.pairs.at + half;
        if (other == first_row_) {
          add_diagonal<Traits::kUpTo>(rows, memory_.stage.at, half, min(kHalf, count - half), answer_);
        } else {
          answer_.add(rows, memory_.stage.at, 0, min(kHalf, count - half));
        }
      }
      if constexpr (Traits::kForward) {
        for (int i = part(); i < count; i += kParts<C>) denominator_ += memory_.pairs.at[i][tile_row()];
      }
      __syncthreads();  // the pairs have been read
    }
  }

  /// Divides by the denominators, which `kept` [batch, heads, length] receives unless it is null, and writes.
  /// Outputs whose denominator is too small are left out, with 0 for the denominator.
  __device__ __forceinline__ void write_outputs(T* result, C* kept) {
    auto& parts = memory_.parts;
    parts[part()][tile_row()] = denominator_;
    __syncthreads();
    if (part() == 0) {
      C sum = denominator_;
      for (int other = 1; other < kParts<C>; ++other) sum += parts[other][tile_row()];
      if (kAnswer == Answer::outputs && sum < C(kLinearAttentionLeast)) sum = 0;
      parts[0][tile_row()] = sum;
      const int row = first_row_ + tile_row();
      if (kept != nullptr && first_col_ == 0 && row < problem_.length) {
        kept[pair_ * problem_.length + row] = sum;
      }
    }
    __syncthreads();
    write_rows(result, [&](int i, int, int64_t, C(&values)[kCols]) {
      const C divisor = parts[0][answer_.row() + i], scale = divisor == C(0) ? C(0) : 1 / divisor;
#pragma unroll
      for (C& value : values) value = divisor == C(0) ? C(0) : value * scale;
      return kAnswer != Answer::outputs || divisor != C(0);
    });
  }

  /// Those of features are multiplied by phi'; hidden keys have none.
  __device__ __forceinline__ void write_gradients(T* result) {
    constexpr bool kOfKeys = kAnswer != Answer::query_gradients;
    write_rows(result, [&](int, int row, int64_t at, C(&values)[kCols]) {
      const bool counts = !kOfKeys || head_.is_visible(row);
      T x[kCols];
      if constexpr (Traits::kOfFeatures) {
        load_elements((kOfKeys ? problem_.k : problem_.q) + at, 0, cols(), problem_.aligned, x);
      }
#pragma unroll
      for (int j = 0; j < kCols; ++j) {
        if constexpr (Traits::kOfFeatures) values[j] *= feature_slope(static_cast<C>(x[j]));
        values[j] = counts ? values[j] : C(0);
      }
      return true;
    });
  }

 private:
  static constexpr int kSize = kTile<C>, kHalf = kDepth<C>;
  static constexpr int kRows = Product<C>::kRows, kCols = Product<C>::kCols;

  /// Whose denominator the thread adds up, and which part of it.
  static __device__ __forceinline__ int tile_row() {
    return static_cast<int>(threadIdx.x) % kSize;
  }
  static __device__ __forceinline__ int part() {
    return static_cast<int>(threadIdx.x) / kSize;
  }
  /// Columns of the head from the thread's first one on.
  __device__ __forceinline__ int cols() const {
    return width_ - first_col_ - answer_.col();
  }

  __device__ __forceinline__ void load_own(int c) {
    __syncthreads();  // the last one has been read
    load_columns<kSize>(Rows<Traits::kOwn, T>(head_, memory_.shifts, first_row_), first_row_, c,
                        memory_.own.at);
  }

  /// memory_.pairs = the products with the rows from `other` on, 0 where they do not meet.
  __device__ __forceinline__ void multiply_pairs(int other) {
    const Rows<Traits::kOther, T> rows(head_);
    Product<C> products;
    for (int c = 0; c < width_; c += kSize) {
      if (!has_own_) load_own(c);
      has_own_ = width_ <= kSize;
      for (int half = 0; half < kSize && c + half < width_; half += kHalf) {
        __syncthreads();
        load_columns<kHalf>(rows, other, c + half, memory_.stage.at);
        __syncthreads();
        products.add(memory_.stage.at, memory_.own.at + half, 0, min(kHalf, width_ - c - half));
      }
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = other + products.row() + i;
#pragma unroll
      for (int j = 0; j < kCols; ++j) {
        const int own = first_row_ + products.col() + j;
        if constexpr (Traits::kOfFeatures) {
          const int query = kAnswer == Answer::query_gradients ? own : row;
          if (query < problem_.length) products.at[i][j] += head_.b[query];
        }
        const bool meet = Traits::kUpTo ? row <= own : row >= own;
        products.at[i][j] = meet ? products.at[i][j] : C(0);
      }
      write_tile(memory_.pairs.at[products.row() + i] + products.col(), products.at[i]);
    }
  }

  /// Writes each of the thread's rows once function(i, row, offset of the thread's elements, values) has
  /// changed the values, unless it is false.
  template <class Function>
  __device__ __forceinline__ void write_rows(T* result, const Function& function) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = first_row_ + answer_.row() + i;
      if (row >= problem_.length || cols() <= 0) continue;
      const int64_t at = head_.at(row, first_col_ + answer_.col());
      if (!function(i, row, at, answer_.at[i])) continue;
      T stored[kCols];
#pragma unroll
      for (int j = 0; j < kCols; ++j) stored[j] = T(answer_.at[i][j]);
      store_elements(result + at, 0, cols(), problem_.aligned, stored);
    }
  }

  const Problem<T>& problem_;
  const int64_t pair_;
  const Head<T> head_;
  const int width_, first_row_, first_col_, chunk_;
  AnswerMemory<C>& memory_;
  Product<C> answer_;
  C denominator_ = 0;     // of tile_row(), the thread's part
  bool has_own_ = false;  // X, all of it, is in memory_.own
};

/// Writes the answers to `result`, like q, and the forward pass the denominators. A block per pair of batch
/// entry and head, tile of rows, and tile of columns.
template <Answer kAnswer, class T>
__global__ void __launch_bounds__(kBlock, 4)
    answer_kernel(Problem<T> problem, States<Compute<T>> states, T* result, Compute<T>* denominators) {
  constexpr int kSize = kTile<Compute<T>>;
  __shared__ AnswerMemory<Compute<T>> memory;
  const int panels = (problem.head + kSize - 1) / kSize, tiles = (problem.length + kSize - 1) / kSize;
  AnswerTile<kAnswer, T> tile(problem, static_cast<int>(blockIdx.x / panels / tiles),
                              static_cast<int>(blockIdx.x / panels % tiles) * kSize,
                              static_cast<int>(blockIdx.x % panels) * kSize, memory);
  tile.add_state(states);
  if (problem.causal) tile.add_pairs();
  if constexpr (AnswerTraits<kAnswer>::kForward) {
    tile.write_outputs(result, denominators);
  } else {
    tile.write_gradients(result);
  }
}

template <Answer kAnswer, class T>
void answer_rows(const Problem<T>& problem, int64_t pairs, const States<Compute<T>>& states, T* result,
                 Compute<T>* denominators = nullptr) {
  using C = Compute<T>;
  const int64_t tiles = ceil_div(problem.length, kTile<C>), panels = ceil_div(problem.head, kTile<C>);
  launch<answer_kernel<kAnswer, T>>({.grid = static_cast<unsigned>(pairs * tiles * panels), .block = kBlock},
                                    problem, states, result, denominators);
}

}  // namespace elwise::cuda::linear_attention
