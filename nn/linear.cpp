#include "nn/linear.h"

#include <cmath>

#include "nn/init.h"
#include "ops/dropout.h"
#include "ops/matmul.h"

namespace elwise::nn {

Linear::Linear(int64_t inputs, int64_t outputs, TensorOptions options, bool with_bias) {
  ELWISE_CHECK(inputs > 0 && outputs > 0, "Linear: expected positive sizes, got ", inputs, " inputs and ",
               outputs, " outputs");
  weight_ = empty({outputs, inputs}, options);
  kaiming_uniform(weight_, 1 / std::sqrt(3.0));
  add_parameter("weight", weight_);
  if (!with_bias) return;
  bias_ = empty({outputs}, options);
  const double bound = 1 / std::sqrt(static_cast<double>(inputs));
  fill_uniform(bias_, -bound, bound);
  add_parameter("bias", bias_);
}

Tensor Linear::forward(const Tensor& x) const {
  return linear(x, weight_, bias_);
}

}  // namespace elwise::nn
