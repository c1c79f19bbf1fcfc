#include "ops/norm_kernels.h"

#include "cuda/launch.cuh"
#include "cuda/row.cuh"

// LayerNorm by teams of threads that hold their row in registers: each tensor moves through memory once.

namespace elwise::cuda {
namespace {

/// The most threads of a block: what a thread holds leaves it no fewer registers.
template <class Team>
constexpr int kForwardThreads = Team::kHoldsAll ? kRowsPerBlock * 32 : 1024;
constexpr int kBackwardThreads = 256;
constexpr int kReduceColumns = 32;  // of a block that adds partials up
constexpr int kReduceRows = 8;

template <class T, int kWidth, class Team>
__global__ void __launch_bounds__(kForwardThreads<Team>, 1) layer_norm_forward_kernel(LayerNormForward args) {
  using Piece = Vector<Compute<T>, kWidth>;
  const int64_t row = int64_t{blockIdx.x} * Team::teams() + Team::number();
  if (row >= args.rows) return;
  const int cols = static_cast<int>(args.cols);
  const T* x = row_of<T>(args.x, row, cols);
  const T* residual = row_of<T>(args.residual, row, cols);
  T* sum = row_of<T>(args.sum, row, cols);
  T* y = row_of<T>(args.y, row, cols);

  // As `sum` stores it: what is normalised here is what backward sees.
  const auto load_h = [=](int col) {
    Piece h = load_compute<kWidth>(x + col);
    if (residual != nullptr) {
      const Piece other = load_compute<kWidth>(residual + col);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) h.at[i] = rounded<T>(h.at[i] + other.at[i]);
    }
    return h;
  };
  HeldRow<T, kWidth, Team, Piece> h(cols, load_h);
  // Differences from the first element keep the mean exact for a constant row, however small eps is.
  Compute<T> first = x[0];
  if (residual != nullptr) first = rounded<T>(first + static_cast<Compute<T>>(residual[0]));

  Compute<T> shift = 0;
  h.each(load_h, [&](int, int col, const Piece& piece) {
    if (sum != nullptr) store_compute<kWidth>(sum + col, piece);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) shift += piece.at[i] - first;
  });
  const Compute<T> count = static_cast<Compute<T>>(cols);
  const Compute<T> mean = first + reduce_team<Team>(shift, Compute<T>(0)) / count;
  Compute<T> squares = 0;
  h.each(load_h, [&](int, int, const Piece& piece) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) squares += (piece.at[i] - mean) * (piece.at[i] - mean);
  });
  const Compute<T> variance = reduce_team<Team>(squares, Compute<T>(0)) / count;
  const Compute<T> rstd = 1 / sqrt(variance + static_cast<Compute<T>>(args.eps));
  if (Team::rank() == 0) {
    static_cast<Compute<T>*>(args.mean)[row] = mean;
    static_cast<Compute<T>*>(args.rstd)[row] = rstd;
  }

  const T* weight = static_cast<const T*>(args.weight);
  const T* bias = static_cast<const T*>(args.bias);
  h.each(load_h, [&](int, int col, const Piece& piece) {
    Piece result;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) result.at[i] = (piece.at[i] - mean) * rstd;
    if (weight != nullptr) {
      const Piece factors = load_compute<kWidth>(weight + col);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) result.at[i] *= factors.at[i];
    }
    if (bias != nullptr) {
      const Piece terms = load_compute<kWidth>(bias + col);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) result.at[i] += terms.at[i];
    }
    store_compute<kWidth>(y + col, result);
  });
}

/// What backward keeps of some columns of a row: z = (h - mean) * rstd, and dy.
template <class Piece>
struct NormGradient {
  Piece z, dy;
};

/// The sums of dy * z and of dy over the rows that a team takes, for its partial row of dweight and dbias:
/// in registers; those of columns that registers do not hold, in the partial row itself.
template <class T, int kWidth, class Team>
class ParameterSums {
 public:
  using Element = Compute<T>;
  using Piece = Vector<Element, kWidth>;
  using Held = HeldRow<T, kWidth, Team, NormGradient<Piece>>;

  /// `partials` [2, gridDim.x, cols], of which the block gets its rows; null where no sums are wanted.
  __device__ __forceinline__ ParameterSums(void* partials, int cols)
      : dweight_(row_of<Element>(partials, blockIdx.x, cols)),
        dbias_(row_of<Element>(partials, int64_t{gridDim.x} + blockIdx.x, cols)),
        cols_(cols) {
    if constexpr (!Team::kHoldsAll) {
      if (dweight_ == nullptr) return;
      for (int col = Held::column(Held::kPieces); col < cols; col += Team::threads() * kWidth) {
        store(dweight_ + col, Piece{});
        store(dbias_ + col, Piece{});
      }
    }
  }

  __device__ __forceinline__ void add(int i, int col, const NormGradient<Piece>& row) {
    if (dweight_ == nullptr) return;
    if (i < Held::kPieces) {
      accumulate(row, held_dweight_[i], held_dbias_[i]);
    } else {
      Piece dweight = load<kWidth>(dweight_ + col), dbias = load<kWidth>(dbias_ + col);
      accumulate(row, dweight, dbias);
      store(dweight_ + col, dweight);
      store(dbias_ + col, dbias);
    }
  }

  /// Writes the partial row, the block's teams added in order. All threads must call it.
  __device__ __forceinline__ void finish() {
    if (dweight_ == nullptr) return;
    if constexpr (Team::kHoldsAll) add_teams();
    if (Team::number() != Team::teams() - 1) return;
#pragma unroll
    for (int i = 0; i < Held::kPieces; ++i) {
      const int col = Held::column(i);
      if (col >= cols_) continue;
      store(dweight_ + col, held_dweight_[i]);
      store(dbias_ + col, held_dbias_[i]);
    }
  }

 private:
  static __device__ __forceinline__ void accumulate(const NormGradient<Piece>& row, Piece& dweight,
                                                    Piece& dbias) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      dweight.at[i] += row.dy.at[i] * row.z.at[i];
      dbias.at[i] += row.dy.at[i];
    }
  }

  /// The last team gets the sums of all.
  __device__ __forceinline__ void add_teams() {
    constexpr int kSlots = Held::kPieces * 32;
    __shared__ Piece so_far[2][kSlots];
    for (int team = 0; team < Team::teams(); ++team) {
      if (team > 0) __syncthreads();
      if (team != Team::number()) continue;
#pragma unroll
      for (int i = 0; i < Held::kPieces; ++i) {
        const int slot = i * 32 + Team::rank();
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          if (team > 0) held_dweight_[i].at[j] += so_far[0][slot].at[j];
          if (team > 0) held_dbias_[i].at[j] += so_far[1][slot].at[j];
        }
        so_far[0][slot] = held_dweight_[i];
        so_far[1][slot] = held_dbias_[i];
      }
    }
  }

  Element* dweight_;
  Element* dbias_;
  int cols_;
  Piece held_dweight_[Held::kPieces] = {};
  Piece held_dbias_[Held::kPieces] = {};
};

/// One partial's rows. With g = dy * weight: dx = rstd * (g - mean(g) - z * mean(g * z)) + dsum.
template <class T, int kWidth, class Team>
__global__ void __launch_bounds__(kBackwardThreads, 1)
    layer_norm_backward_kernel(LayerNormBackward args, int64_t rows_per_partial) {
  using Element = Compute<T>;
  using Piece = Vector<Element, kWidth>;
  using Gradient = NormGradient<Piece>;
  const int cols = static_cast<int>(args.cols);
  const T* weight = static_cast<const T*>(args.weight);
  const auto weigh = [=](const Piece& dy, int col) {
    if (weight == nullptr) return dy;
    Piece result = load_compute<kWidth>(weight + col);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) result.at[i] *= dy.at[i];
    return result;
  };
  ParameterSums<T, kWidth, Team> parameters(args.partials, cols);
  const int64_t begin = blockIdx.x * rows_per_partial, end = min(begin + rows_per_partial, args.rows);
  for (int64_t row = begin + Team::number(); row < end; row += Team::teams()) {
    const T* h = row_of<T>(args.h, row, cols);
    const T* dy = row_of<T>(args.dy, row, cols);
    const T* dsum = row_of<T>(args.dsum, row, cols);
    T* dx = row_of<T>(args.dx, row, cols);
    const Element mean = static_cast<const Element*>(args.mean)[row];
    const Element rstd = static_cast<const Element*>(args.rstd)[row];
    const auto load_gradient = [=](int col) {
      Gradient result{load_compute<kWidth>(h + col), load_compute<kWidth>(dy + col)};
#pragma unroll
      for (int i = 0; i < kWidth; ++i) result.z.at[i] = (result.z.at[i] - mean) * rstd;
      return result;
    };
    HeldRow<T, kWidth, Team, Gradient> gradient(cols, load_gradient);
    Element means[2] = {};  // of g and of g * z
    gradient.each(load_gradient, [&](int i, int col, const Gradient& piece) {
      parameters.add(i, col, piece);
      const Piece g = weigh(piece.dy, col);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        means[0] += g.at[j];
        means[1] += g.at[j] * piece.z.at[j];
      }
    });
    Team::reduce(means, Element(0));
    for (Element& value : means) value /= static_cast<Element>(cols);
    gradient.each(load_gradient, [&](int, int col, const Gradient& piece) {
      Piece result = weigh(piece.dy, col);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        result.at[j] = (result.at[j] - means[0] - piece.z.at[j] * means[1]) * rstd;
      }
      if (dsum != nullptr) {
        const Piece terms = load_compute<kWidth>(dsum + col);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) result.at[j] += terms.at[j];
      }
      store_compute<kWidth>(dx + col, result);
    });
  }
  parameters.finish();
}

/// dweight (blockIdx.y = 0) or dbias (1) from its partial rows [count, cols]: a thread adds every
/// kReduceRows-th row, and the first of a column adds the threads' sums.
template <class T>
__global__ void add_partials_kernel(LayerNormBackward args, int64_t count) {
  using Element = Compute<T>;
  __shared__ Element sums[kReduceRows][kReduceColumns];
  T* result = static_cast<T*>(blockIdx.y == 0 ? args.dweight : args.dbias);
  if (result == nullptr) return;
  const int64_t col = int64_t{blockIdx.x} * kReduceColumns + threadIdx.x;
  const auto* partials = static_cast<const Element*>(args.partials) + blockIdx.y * count * args.cols + col;
  Element sum = 0;
  if (col < args.cols) {
#pragma unroll 4
    for (int64_t row = threadIdx.y; row < count; row += kReduceRows) sum += partials[row * args.cols];
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || col >= args.cols) return;
  for (int y = 1; y < kReduceRows; ++y) sum += sums[y][threadIdx.x];
  result[col] = T(sum);
}

}  // namespace

void layer_norm_forward(const LayerNormForward& args) {
  dispatch_floating(args.dtype, "layer_norm_forward", [&]<class T>() {
    const bool aligned = is_aligned(args.x, args.y, args.residual, args.sum, args.weight, args.bias);
    dispatch_row<T>("layer_norm_forward", args.cols, aligned, kForwardThreads<BlockTeam>,
                    [&]<int kWidth, class Team>(int threads) {
                      launch<layer_norm_forward_kernel<T, kWidth, Team>>(
                          shape_for_rows<Team>(args.rows, threads), args);
                    });
  });
}

void layer_norm_backward(const LayerNormBackward& args) {
  const int64_t partials = layer_norm_partials(args.rows), rows = layer_norm_rows_per_partial(args.rows);
  const int warps = static_cast<int>(std::min<int64_t>(rows, kBackwardThreads / 32));
  dispatch_floating(args.dtype, "layer_norm_backward", [&]<class T>() {
    const bool aligned = is_aligned(args.h, args.dy, args.dx, args.dsum, args.weight, args.partials);
    dispatch_row<T>("layer_norm_backward", args.cols, aligned, kBackwardThreads,
                    [&]<int kWidth, class Team>(int threads) {
                      const int block = Team::kHoldsAll ? warps * threads : threads;
                      launch<layer_norm_backward_kernel<T, kWidth, Team>>(
                          {.grid = static_cast<unsigned>(partials), .block = static_cast<unsigned>(block)},
                          args, rows);
                    });
    if (args.dweight == nullptr && args.dbias == nullptr) return;
    launch<add_partials_kernel<T>>({.grid = {static_cast<unsigned>(ceil_div(args.cols, kReduceColumns)), 2},
                                    .block = {kReduceColumns, kReduceRows}},
                                   args, partials);
  });
}

}  // namespace elwise::cuda
