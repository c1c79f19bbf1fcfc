#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "core/parallel.h"
#include "ops/matmul_kernels.h"

namespace elwise::cpu {

// Block bounds are multiples of the rows and columns that oneDNN's kernel computes at a time.
inline constexpr int64_t kGrain = 48;

/// [0, size) cut in at most `parts` ranges whose bounds are multiples of kGrain, but for the end. The last
/// range is never a mere rest: oneDNN sums single rows and columns in another order.
struct Cut {
  int64_t size, parts;

  Cut(int64_t total, int64_t most) : size(total), parts(std::clamp<int64_t>(total / kGrain, 1, most)) {}

  int64_t bound(int64_t part) const { return part == parts ? size : size / kGrain * part / parts * kGrain; }
};

/// How one product is cut into blocks, one sgemm each: `rows.parts * cols.parts` is some `blocks`, and a
/// block reads as little of a and b as can be.
struct Grid {
  Cut rows, cols;

  static Grid of(int64_t m, int64_t n, int64_t blocks) {
    Grid best{Cut(m, 1), Cut(n, blocks)};
    int64_t least = std::numeric_limits<int64_t>::max();
    for (int64_t row_parts = 1; row_parts <= blocks; ++row_parts) {
      if (blocks % row_parts != 0) continue;
      const Grid grid{Cut(m, row_parts), Cut(n, blocks / row_parts)};
      const int64_t missing = blocks - grid.rows.parts * grid.cols.parts;
      const int64_t edge = m / grid.rows.parts + n / grid.cols.parts + missing * (m + n);
      if (edge < least) {
        least = edge;
        best = grid;
      }
    }
    return best;
  }
};

/// Rows [row0, row1) and columns [col0, col1) of product `item`, as a product of its own.
inline Matmul block_of(const Matmul& args, int64_t item, int64_t row0, int64_t row1, int64_t col0,
                       int64_t col1) {
  const int64_t outer = item / args.inner, inner = item % args.inner, bytes = size_of(args.dtype);
  const auto at = [bytes](const void* data, int64_t element) {
    return static_cast<const std::byte*>(data) + element * bytes;
  };
  Matmul block = args;
  block.outer = block.inner = 1;
  block.m = row1 - row0;
  block.n = col1 - col0;
  block.a =
      at(args.a, outer * args.a_outer + inner * args.a_inner + row0 * (args.transpose_a ? 1 : args.lda));
  block.b =
      at(args.b, outer * args.b_outer + inner * args.b_inner + col0 * (args.transpose_b ? args.ldb : 1));
  block.c = static_cast<std::byte*>(args.c) +
            (outer * args.c_outer + inner * args.c_inner + row0 * args.ldc + col0) * bytes;
  if (args.bias != nullptr) block.bias = at(args.bias, col0);
  return block;
}

/// Calls multiply(block) for blocks that cover all products, in parallel: inside a parallel loop oneDNN runs
/// on the calling thread alone and cannot split k. False, with nothing done, for one product too small to
/// share: its only block would run outside of such a loop.
template <class Multiply>
bool multiply_by_blocks(const Matmul& args, const Multiply& multiply) {
  const int64_t products = args.outer * args.inner, threads = num_threads();
  if (products == 1 && args.m < 2 * kGrain && args.n < 2 * kGrain) return false;
  const Grid grid = Grid::of(args.m, args.n, (threads + products - 1) / products);
  const int64_t col_parts = grid.cols.parts, blocks = grid.rows.parts * col_parts;
  parallel_for(products * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task % blocks / col_parts, col = task % col_parts;
      multiply(block_of(args, task / blocks, grid.rows.bound(row), grid.rows.bound(row + 1),
                        grid.cols.bound(col), grid.cols.bound(col + 1)));
    }
  });
  return true;
}

}  // namespace elwise::cpu
