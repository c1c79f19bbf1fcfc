#pragma once

#include "nn/module.h"

namespace elwise::nn {

/// y = x weight^T + bias, weight [outputs, inputs]. Initialised as PyTorch does: uniform in +-1 /
/// sqrt(inputs).
class Linear : public Module {
 public:
  Linear(int64_t inputs, int64_t outputs, TensorOptions options = {}, bool with_bias = true);

  /// x [.., inputs] -> [.., outputs].
  Tensor forward(const Tensor& x) const;

  const Tensor& weight() const { return weight_; }
  /// Undefined without a bias.
  const Tensor& bias() const { return bias_; }

 private:
  Tensor weight_;
  Tensor bias_;
};

}  // namespace elwise::nn
