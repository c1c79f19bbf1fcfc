#pragma once

#include <algorithm>
#include <string_view>

#include "cuda/reduce.cuh"
#include "cuda/vector.cuh"

// Kernels that work on whole rows. A team of threads shares a row, and each of them holds its columns in
// registers, so that a row comes from memory once however often a kernel goes over it.

namespace elwise::cuda {

/// One warp of several in the block: short rows.
struct WarpTeam {
  static constexpr bool kHoldsAll = true;  // the row fits the registers
  static __device__ __forceinline__ int rank() { return static_cast<int>(threadIdx.x) % 32; }
  static __device__ __forceinline__ int threads() { return 32; }
  /// The team's number among those of the block.
  static __device__ __forceinline__ int number() { return static_cast<int>(threadIdx.x) / 32; }
  static __device__ __forceinline__ int teams() { return static_cast<int>(blockDim.x) / 32; }

  template <int K, class T, class Combine = Plus>
  static __device__ __forceinline__ void reduce(T (&values)[K], T, Combine combine = {}) {
#pragma unroll
    for (int k = 0; k < K; ++k) values[k] = reduce_warp(values[k], combine);
  }
};

/// The block.
struct BlockTeam {
  static constexpr bool kHoldsAll = false;
  static __device__ __forceinline__ int rank() { return static_cast<int>(threadIdx.x); }
  static __device__ __forceinline__ int threads() { return static_cast<int>(blockDim.x); }
  static __device__ __forceinline__ int number() { return 0; }
  static __device__ __forceinline__ int teams() { return 1; }

  template <int K, class T, class Combine = Plus>
  static __device__ __forceinline__ void reduce(T (&values)[K], T identity, Combine combine = {}) {
    reduce_block(values, identity, combine);
  }
};

/// `combine` over a value of each thread of the team; every thread gets the result.
template <class Team, class T, class Combine = Plus>
__device__ __forceinline__ T reduce_team(T value, T identity, Combine combine = {}) {
  T values[] = {value};
  Team::reduce(values, identity, combine);
  return values[0];
}

/// Elements that a thread holds of a row. A warp gets more, so that the rows of common models fit one; where
/// several warps share a row, or each element is an access of its own, more threads with fewer do better.
template <class T, int kWidth, class Team>
inline constexpr int kHeldElements = (Team::kHoldsAll && kWidth > 1 ? 128 : 64) /
                                     static_cast<int>(sizeof(Compute<T>));

/// A thread's part of a row, in pieces of kWidth neighbouring columns: kPieces of them in registers; of rows
/// longer than all registers of the team hold, the others are loaded again by each pass. A Value is what a
/// kernel keeps for a piece.
template <class T, int kWidth, class Team, class Value>
class HeldRow {
 public:
  static constexpr int kPieces = kHeldElements<T, kWidth, Team> / kWidth;

  /// load(col) gives the Value of columns [col, col + kWidth).
  template <class Load>
  __device__ __forceinline__ HeldRow(int cols, Load load) : cols_(cols) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      if (column(i) < cols_) pieces_[i] = load(column(i));
    }
  }

  /// Calls body(i, col, value) for each piece: the i-th that registers hold (i < kPieces), which body may
  /// change, and what load gives for the others (i = kPieces).
  template <class Load, class Body>
  __device__ __forceinline__ void each(Load load, Body body) {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      if (column(i) < cols_) body(i, column(i), pieces_[i]);
    }
    if constexpr (!Team::kHoldsAll) {
      for (int col = column(kPieces); col < cols_; col += Team::threads() * kWidth) {
        Value value = load(col);
        body(kPieces, col, value);
      }
    }
  }

  static __device__ __forceinline__ int column(int i) {
    return (i * Team::threads() + Team::rank()) * kWidth;
  }

 private:
  int cols_;
  Value pieces_[kPieces];
};

/// Row `row` of a matrix [.., cols]; null where there is none.
template <class T>
__device__ __forceinline__ T* row_of(void* matrix, int64_t row, int64_t cols) {
  return matrix == nullptr ? nullptr : static_cast<T*>(matrix) + row * cols;
}
template <class T>
__device__ __forceinline__ const T* row_of(const void* matrix, int64_t row, int64_t cols) {
  return matrix == nullptr ? nullptr : static_cast<const T*>(matrix) + row * cols;
}

/// Columns are int in kernels, with room for the last pieces' ends.
inline constexpr int64_t kMostColumns = int64_t{1} << 30;

inline void check_columns(std::string_view kernel, int64_t cols) {
  ELWISE_CHECK(cols <= kMostColumns, kernel, ": expected rows of at most ", kMostColumns, " elements, got ",
               cols);
}

/// Calls function.operator()<Team>(threads of a team) with a team that holds rows of `cols` elements in
/// pieces of kWidth, as far as `most_threads` can.
template <class T, int kWidth, class Function>
void dispatch_team(std::string_view kernel, int64_t cols, int most_threads, const Function& function) {
  check_columns(kernel, cols);
  constexpr int kWarp = 32;
  if (cols <= kWarp * kHeldElements<T, kWidth, WarpTeam>) {
    function.template operator()<WarpTeam>(kWarp);
  } else {
    const int64_t warps = ceil_div(cols, kWarp * kHeldElements<T, kWidth, BlockTeam>);
    function.template operator()<BlockTeam>(static_cast<int>(std::min<int64_t>(warps * kWarp, most_threads)));
  }
}

/// Calls function.operator()<kWidth, Team>(threads of a team): dispatch_team with pieces of 16 bytes where
/// `aligned` and the size of a row allow them, else of one element.
template <class T, class Function>
void dispatch_row(std::string_view kernel, int64_t cols, bool aligned, int most_threads,
                  const Function& function) {
  const auto with_width = [&]<int kWidth>() {
    dispatch_team<T, kWidth>(kernel, cols, most_threads, [&]<class Team>(int threads) {
      function.template operator()<kWidth, Team>(threads);
    });
  };
  if (aligned && cols % kVectorWidth<T> == 0) {
    with_width.template operator()<kVectorWidth<T>>();
  } else {
    with_width.template operator()<1>();
  }
}

/// Rows of a block whose teams are warps.
inline constexpr int kRowsPerBlock = 4;

/// A team of `threads` for each row.
template <class Team>
LaunchShape shape_for_rows(int64_t rows, int threads) {
  const int teams = Team::kHoldsAll ? kRowsPerBlock : 1;
  return {.grid = static_cast<unsigned>(ceil_div(rows, teams)),
          .block = static_cast<unsigned>(teams * threads)};
}

}  // namespace elwise::cuda
