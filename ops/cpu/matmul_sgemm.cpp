#include <dnnl.h>

#include "core/error.h"
#include "core/parallel.h"
#include "ops/cpu/matmul_grid.h"
#include "ops/cpu/matmul_routes.h"

namespace elwise::cpu {
namespace {

/// One block of one product.
void multiply_block(const Matmul& block) {
  const dnnl_status_t status =
      dnnl_sgemm(block.transpose_a ? 'T' : 'N', block.transpose_b ? 'T' : 'N', block.m, block.n, block.k,
                 static_cast<float>(block.scale), static_cast<const float*>(block.a), block.lda,
                 static_cast<const float*>(block.b), block.ldb, block.accumulate ? 1.0F : 0.0F,
                 static_cast<float*>(block.c), block.ldc);
  ELWISE_CHECK(status == dnnl_success, "matmul: oneDNN's sgemm failed with status ", status, " for a block [",
               block.m, ", ", block.k, "] x [", block.k, ", ", block.n, "]");
}

}  // namespace

bool matmul_sgemm(const Matmul& args) {
  if (args.dtype != DType::f32 || args.bias != nullptr) return false;
  return multiply_by_blocks(args, multiply_block);
}

}  // namespace elwise::cpu
