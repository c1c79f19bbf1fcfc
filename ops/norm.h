#pragma once

#include "core/tensor.h"

namespace elwise {

/// Layer normalisation over the last dimension (Ba et al., arXiv 1607.06450): (x - mean) / sqrt(variance +
/// eps) * weight + bias, with the biased variance. weight and bias [cols] may be undefined (1 and 0).
/// Differentiable.
Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps = 1e-5);

struct AddLayerNormResult {
  Tensor normalized;  // layer_norm(sum)
  Tensor sum;         // x + residual
};
/// layer_norm(x + residual) in one pass over memory: Post-LN takes `normalized`, Pre-LN both. An x that is
/// moved here, and that no one else has, gives its memory to `normalized`. Differentiable in all inputs.
AddLayerNormResult add_layer_norm(Tensor x, const Tensor& residual, const Tensor& weight, const Tensor& bias,
                                  double eps = 1e-5);

}  // namespace elwise
