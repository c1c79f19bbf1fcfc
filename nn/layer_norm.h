#pragma once

#include "nn/module.h"
#include "ops/norm.h"

namespace elwise::nn {

/// Layer normalisation over the last dimension with a learned weight (1 at first) and bias (0).
class LayerNorm : public Module {
 public:
  explicit LayerNorm(int64_t cols, double eps = 1e-5, TensorOptions options = {});

  /// x [.., cols] -> the same shape.
  Tensor forward(const Tensor& x) const { return layer_norm(x, weight_, bias_, eps_); }
  /// Normalises x + residual in one pass; see add_layer_norm.
  AddLayerNormResult forward_add(Tensor x, const Tensor& residual) const {
    return add_layer_norm(std::move(x), residual, weight_, bias_, eps_);
  }

 private:
  Tensor weight_;
  Tensor bias_;
  double eps_;
};

}  // namespace elwise::nn
