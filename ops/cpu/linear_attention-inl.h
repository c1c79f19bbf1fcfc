// What the kernels of linear attention share; ops/linear_attention_kernels.h has the mathematics.
//
// A task walks one head down a span of the sequence in chunks of 64 rows. Inside a chunk the causal form is
// quadratic; what lies before it (or, for the gradients of keys, behind it) comes from the running state. All
// of it is products a^T b of small dense matrices, by the register tile of the blocked matrix product; rows
// are features or values as they are stored, and "columns" the same transposed, [channels][kChunk]. S is
// the element type of the tensors, T = Compute<S> that of matrices and states: rows are converted as they are
// loaded and stored.

#if defined(ELWISE_OPS_CPU_LINEAR_ATTENTION_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ELWISE_OPS_CPU_LINEAR_ATTENTION_INL_H_
#undef ELWISE_OPS_CPU_LINEAR_ATTENTION_INL_H_
#else
#define ELWISE_OPS_CPU_LINEAR_ATTENTION_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <cstdint>

#include "core/parallel.h"
#include "core/simd-inl.h"
#include "ops/cpu/matmul_tile-inl.h"
#include "ops/cpu/row-inl.h"
#include "ops/cpu/thread_scratch.h"
#include "ops/linear_attention_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE::linear_attention {

inline constexpr int64_t kChunk = 64;

template <class T>
using Tag = hn::ScalableTag<T>;
template <class T>
using Vec = hn::Vec<Tag<T>>;

constexpr int64_t round_up(int64_t size, int64_t multiple) {
  return (size + multiple - 1) / multiple * multiple;
}

/// Rows `step` elements apart.
template <class T>
struct Matrix {
  T* data;
  int64_t step;

  T* row(int64_t i) const { return data + i * step; }
};

/// The step of rows of `width` elements, or one more, that a tile can read as either operand.
template <class T>
constexpr int64_t step_of(int64_t width) {
  return round_up(width + 1, std::max<int64_t>(kVectorLanes<T>, 4));
}

/// The rows and the step of a matrix.
struct MatrixSize {
  int64_t rows, step;
};

/// Matrices of these sizes in the thread's scratch, some hundred KiB for heads of 64.
template <class T, size_t kCount>
std::array<Matrix<T>, kCount> thread_matrices(const MatrixSize (&sizes)[kCount]) {
  constexpr int64_t kLine = 64 / sizeof(T);
  int64_t count = 0;
  for (const MatrixSize& size : sizes) count += round_up(size.rows * size.step, kLine);
  std::array<Matrix<T>, kCount> matrices;
  T* next = thread_scratch<T>(count);
  for (size_t i = 0; i < kCount; ++i) {
    matrices[i] = {next, sizes[i].step};
    next += round_up(sizes[i].rows * sizes[i].step, kLine);
  }
  return matrices;
}

// ---- Products. Columns are computed up to the end of a vector.

/// Steps [begin, end) of the tile of a^T b at (row, col), for a result of rows x cols.
template <class T>
HWY_INLINE void multiply_tile(Matrix<T> a, Matrix<T> b, int64_t row, int64_t rows, int64_t col, int64_t cols,
                              int64_t begin, int64_t end, Matrix<T> c, bool accumulate) {
  compute_tile<T>({a.row(begin) + row, a.step}, {b.row(begin) + col, b.step}, end - begin,
                  {.c = c.row(row) + col,
                   .ldc = c.step,
                   .rows = std::min<int64_t>(kTileRows, rows - row),
                   .cols = std::min<int64_t>(kTileCols<T>, round_up(cols, kVectorLanes<T>) - col),
                   .scale = 1,
                   .accumulate = accumulate,
                   .bias = nullptr});
}

/// c [rows, cols] = a^T b (+ c), for a [depth, rows] and b [depth, cols].
template <class T>
void multiply(Matrix<T> a, Matrix<T> b, int64_t rows, int64_t cols, int64_t depth, Matrix<T> c,
              bool accumulate) {
  for (int64_t col = 0; col < cols; col += kTileCols<T>) {
    for (int64_t row = 0; row < rows; row += kTileRows) {
      multiply_tile(a, b, row, rows, col, cols, 0, depth, c, accumulate);
    }
  }
}

/// Which pairs of a chunk's rows meet: a column with the rows up to it, or with the rows from it on.
enum class Pairs : uint8_t { up_to, from };

/// c [count, count] = a^T b for the pairs that meet, 0 for the others.
template <Pairs kPairs, class T>
void multiply_pairs(Matrix<T> a, Matrix<T> b, int64_t count, int64_t depth, Matrix<T> c) {
  for (int64_t col = 0; col < count; col += kTileCols<T>) {
    const int64_t begin = kPairs == Pairs::up_to ? 0 : col / kTileRows * kTileRows;
    const int64_t end = kPairs == Pairs::up_to ? std::min<int64_t>(count, col + kTileCols<T>) : count;
    for (int64_t row = begin; row < end; row += kTileRows) {
      multiply_tile(a, b, row, count, col, count, 0, depth, c, false);
    }
  }
  for (int64_t row = 0; row < count; ++row) {
    T* of_row = c.row(row);
    kPairs == Pairs::up_to ? std::fill(of_row, of_row + row, T(0))
                           : std::fill(of_row + row + 1, of_row + count, T(0));
  }
}

/// c [count, cols] += pairs^T b, for b [count, cols], leaving out rows of zeros.
template <Pairs kPairs, class T>
void add_pairs(Matrix<T> pairs, Matrix<T> b, int64_t count, int64_t cols, Matrix<T> c) {
  for (int64_t col = 0; col < cols; col += kTileCols<T>) {
    for (int64_t row = 0; row < count; row += kTileRows) {
      const int64_t begin = kPairs == Pairs::up_to ? 0 : row;
      const int64_t end = kPairs == Pairs::up_to ? std::min<int64_t>(count, row + kTileRows) : count;
      multiply_tile(pairs, b, row, count, col, cols, begin, end, c, true);
    }
  }
}

/// to [width][kChunk] = from^T, for the first `count` of kChunk rows; the others count as 0.
template <class T>
void transpose(Matrix<T> from, int64_t count, int64_t width, Matrix<T> to) {
  pack_panels<kChunk>(Operand<T>{from.data, from.step, 1}, count, width, to.data);
}

// ---- Rows of one head

/// phi(x) = elu(x) + 1. Its derivative is min(phi(x), 1).
template <class T>
HWY_INLINE Vec<T> feature(Vec<T> x) {
  const Tag<T> d;
  const auto zero = hn::Zero(d);  // first: of two operands x86 gives the second where one is NaN
  return hn::Add(hn::Max(zero, x), ExpNonPositive(d, hn::Min(zero, x)));
}

/// One head of one batch entry.
template <class S, class Arguments>
struct Head {
  const Arguments& args;
  int64_t batch, head;

  Head(const Arguments& arguments, int64_t pair)
      : args(arguments), batch(pair / arguments.heads), head(pair % arguments.heads) {}

  Matrix<const S> in(const void* tensor) const { return {static_cast<const S*>(tensor) + offset(), step()}; }
  Matrix<S> out(void* tensor) const { return {static_cast<S*>(tensor) + offset(), step()}; }
  /// Element i is query i's.
  template <class P>
  P* per_query(P* tensor) const {
    return tensor + (batch * args.heads + head) * args.length;
  }
  template <class P>
  P* state(P* states, int64_t index) const {
    const int64_t count = linear_attention_states(args.batch, args.length, args.heads, args.causal);
    return states + ((batch * args.heads + head) * count + index) * (args.head + 1) * args.head;
  }
  bool is_visible(int64_t row) const {
    return args.key_mask == nullptr || args.key_mask[batch * args.length + row];
  }
  /// Keys at and beyond this row are hidden from query `row`.
  int64_t key_end(int64_t row) const { return args.causal ? row + 1 : args.length; }

 private:
  int64_t step() const { return args.heads * args.head; }
  int64_t offset() const { return batch * args.length * step() + head * args.head; }
};

/// How a sequence is cut.
struct Spans {
  int64_t count, rows, length;

  template <class Arguments>
  explicit Spans(const Arguments& args)
      : count(linear_attention_spans(args.batch, args.length, args.heads)),
        rows(round_up((args.length + count - 1) / count, kChunk)),
        length(args.length) {}

  int64_t begin(int64_t span) const { return std::min(length, span * rows); }
  int64_t end(int64_t span) const { return begin(span + 1); }
};

/// Rows [begin, begin + count) of a sequence, and how far the chunk that comes next lies from here.
struct Chunk {
  int64_t begin, count;
  int64_t next = kChunk;
};

/// Asks for a row of the next chunk: rows of one head, a tensor row apart, are not prefetched by hardware.
template <class S>
HWY_INLINE void prefetch_row(const S* row, int64_t width) {
  for (int64_t c = 0; c < width; c += 64 / sizeof(S)) hwy::Prefetch(row + c);
}

/// to [count, width] = function(the chunk's rows of `from`).
template <class S, class T, class Function>
HWY_INLINE void load_rows(Matrix<const S> from, const Chunk& chunk, int64_t width, Matrix<T> to,
                          const Function& function) {
  const Tag<T> d;
  for (int64_t i = 0; i < chunk.count; ++i) {
    const S* HWY_RESTRICT source = from.row(chunk.begin + i);
    T* HWY_RESTRICT target = to.row(i);
    prefetch_row(source + chunk.next * from.step, width);
    for_each_vector(d, 0, width, [&](int64_t c, int64_t n) HWY_ATTR {
      hn::Store(function(load_lanes(d, source + c, n)), d, target + c);
    });
  }
}

template <class S, class Arguments, class T>
HWY_INLINE void load_query_features(const Head<S, Arguments>& head, const Chunk& chunk, Matrix<T> to) {
  load_rows(head.in(head.args.q), chunk, head.args.head, to, [](Vec<T> x) HWY_ATTR { return feature<T>(x); });
}

/// Rows of 0 for hidden keys, whatever they hold.
template <class S, class Arguments, class T>
void clear_hidden(const Head<S, Arguments>& head, const Chunk& chunk, Matrix<T> to) {
  if (head.args.key_mask == nullptr) return;
  for (int64_t i = 0; i < chunk.count; ++i) {
    if (!head.is_visible(chunk.begin + i)) std::fill_n(to.row(i), to.step, T(0));
  }
}

template <class S, class Arguments, class T>
HWY_INLINE void load_key_features(const Head<S, Arguments>& head, const Chunk& chunk, Matrix<T> to) {
  load_rows(head.in(head.args.k), chunk, head.args.head, to, [](Vec<T> x) HWY_ATTR { return feature<T>(x); });
  clear_hidden(head, chunk, to);
}

/// The values of the visible keys, and a 1 behind each row. False where one is not finite.
template <class S, class Arguments, class T>
HWY_INLINE bool load_values(const Head<S, Arguments>& head, const Chunk& chunk, Matrix<T> to) {
  const Tag<T> d;
  load_rows(head.in(head.args.v), chunk, head.args.head, to, [](Vec<T> x) HWY_ATTR { return x; });
  for (int64_t i = 0; i < chunk.count; ++i) to.row(i)[head.args.head] = T(1);
  clear_hidden(head, chunk, to);
  auto nan = hn::Zero(d);  // where a value is not finite
  for (int64_t i = 0; i < chunk.count; ++i) {
    for_each_vector(d, 0, head.args.head, [&](int64_t c, int64_t n) HWY_ATTR {
      nan = hn::MulAdd(load_lanes(d, to.row(i) + c, n), hn::Zero(d), nan);
    });
  }
  return hn::AllFalse(d, hn::IsNaN(nan));
}

// ---- States. A row more than `width` holds z, or B.

template <class T>
void load_state(const T* from, int64_t width, Matrix<T> to) {
  for (int64_t row = 0; row <= width; ++row) std::copy_n(from + row * width, width, to.row(row));
}

template <class T>
void store_state(Matrix<T> from, int64_t width, T* to) {
  for (int64_t row = 0; row <= width; ++row) std::copy_n(from.row(row), width, to + row * width);
}

template <class T>
void clear_state(int64_t width, Matrix<T> state) {
  std::fill_n(state.data, (width + 1) * state.step, T(0));
}

/// Sums the states of each head: after that each holds those up to it too, or those from it on.
template <class T, class Arguments>
void accumulate_states(const Arguments& args, T* states, Pairs direction) {
  const int64_t count = linear_attention_states(args.batch, args.length, args.heads, args.causal);
  const int64_t size = (args.head + 1) * args.head;
  if (count < 2) return;
  parallel_tasks(args.batch * args.heads, [&](int64_t pair) {
    for (int64_t step = 1; step < count; ++step) {
      const int64_t to = direction == Pairs::up_to ? step : count - 1 - step;
      const int64_t from = direction == Pairs::up_to ? to - 1 : to + 1;
      const T* HWY_RESTRICT addend = states + (pair * count + from) * size;
      T* HWY_RESTRICT sum = states + (pair * count + to) * size;
      for (int64_t i = 0; i < size; ++i) sum[i] += addend[i];
    }
  });
}

}  // namespace elwise::cpu::HWY_NAMESPACE::linear_attention
HWY_AFTER_NAMESPACE();

#endif
