#include <algorithm>
#include <array>
#include <limits>

#include <dnnl.h>

#include "core/error.h"
#include "core/parallel.h"
#include "ops/cpu/matmul_routes.h"

namespace elwise::cpu {
namespace {

// Block bounds are multiples of the rows and columns that oneDNN's kernel computes at a time.
constexpr int64_t kGrain = 48;

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

/// Block [row0, row1) x [col0, col1) of product `item`.
void multiply_block(const Matmul& args, int64_t item, std::array<int64_t, 4> block) {
  const auto [row0, row1, col0, col1] = block;
  const int64_t outer = item / args.inner, inner = item % args.inner;
  const float* a = static_cast<const float*>(args.a) + outer * args.a_outer + inner * args.a_inner +
                   row0 * (args.transpose_a ? 1 : args.lda);
  const float* b = static_cast<const float*>(args.b) + outer * args.b_outer + inner * args.b_inner +
                   col0 * (args.transpose_b ? args.ldb : 1);
  float* c =
      static_cast<float*>(args.c) + outer * args.c_outer + inner * args.c_inner + row0 * args.ldc + col0;
  const dnnl_status_t status = dnnl_sgemm(args.transpose_a ? 'T' : 'N', args.transpose_b ? 'T' : 'N',
                                          row1 - row0, col1 - col0, args.k, static_cast<float>(args.scale), a,
                                          args.lda, b, args.ldb, args.accumulate ? 1.0F : 0.0F, c, args.ldc);
  ELWISE_CHECK(status == dnnl_success, "matmul: oneDNN's sgemm failed with status ", status, " for [", args.m,
               ", ", args.k, "] x [", args.k, ", ", args.n, "]");
}

}  // namespace

bool matmul_sgemm(const Matmul& args) {
  if (args.dtype != DType::f32 || args.bias != nullptr) return false;
  // One block would run outside a parallel loop, where oneDNN may split k.
  if (args.outer * args.inner == 1 && args.m < 2 * kGrain && args.n < 2 * kGrain) return false;
  const int64_t products = args.outer * args.inner, threads = num_threads();
  const Grid grid = Grid::of(args.m, args.n, (threads + products - 1) / products);
  const int64_t col_parts = grid.cols.parts, blocks = grid.rows.parts * col_parts;
  // Inside a parallel loop oneDNN runs on the calling thread alone: it cannot split k.
  parallel_for(products * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t row = task % blocks / col_parts, col = task % col_parts;
      multiply_block(
          args, task / blocks,
          {grid.rows.bound(row), grid.rows.bound(row + 1), grid.cols.bound(col), grid.cols.bound(col + 1)});
    }
  });
  return true;
}

}  // namespace elwise::cpu
