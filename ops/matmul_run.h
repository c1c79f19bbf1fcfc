#pragma once

#include "core/tensor.h"
#include "ops/matmul_kernels.h"

// Matrix products as ops use them: not recorded.

namespace elwise {

/// Dispatches a product with the workspace that it needs, and logs its shape (MatmulLog).
/// `problem.workspace` is filled in here. The one way from ops to the matmul kernels.
void run_matmul(Device device, Matmul problem);

/// What happens to a product on its way to c; see Matmul.
struct Epilogue {
  Tensor bias = {};
  bool accumulate = false;
  bool gelu_tanh = false;
};

/// c = op(a) op(b) for a [batch, ., .] and b [batch, ., .], or for two matrices; c has m n elements for each.
void product_into(const Tensor& c, const Tensor& a, bool transpose_a, const Tensor& b, bool transpose_b,
                  const Epilogue& epilogue = {});

}  // namespace elwise
