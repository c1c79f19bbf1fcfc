#include "nn/init.h"

#include <cmath>

#include "ops/dropout.h"
#include "ops/elementwise.h"

namespace elwise::nn {

void xavier_uniform(const Tensor& weight) {
  ELWISE_CHECK(weight.rank() == 2, "xavier_uniform: expected [outputs, inputs], got ", weight.shape());
  const double bound = std::sqrt(6.0 / static_cast<double>(weight.size(0) + weight.size(1)));
  fill_uniform(weight, -bound, bound);
}

void kaiming_uniform(const Tensor& weight, double gain) {
  ELWISE_CHECK(weight.rank() == 2, "kaiming_uniform: expected [outputs, inputs], got ", weight.shape());
  const double bound = gain * std::sqrt(3.0 / static_cast<double>(weight.size(1)));
  fill_uniform(weight, -bound, bound);
}

void kaiming_normal(const Tensor& weight, double gain) {
  ELWISE_CHECK(weight.rank() == 2, "kaiming_normal: expected [outputs, inputs], got ", weight.shape());
  fill_normal(weight, 0, gain / std::sqrt(static_cast<double>(weight.size(1))));
}

void initialize_bert(const Module& model, double deviation) {
  for (const auto& [name, parameter] : model.named_parameters()) {
    const bool is_bias = name == "bias" || name.ends_with(".bias");  // AFT's "position_bias" is a table
    if (is_bias) {
      fill(parameter, 0);
    } else if (name.ends_with("LayerNorm.weight")) {
      fill(parameter, 1);
    } else {
      fill_normal(parameter, 0, deviation);
    }
  }
}

}  // namespace elwise::nn
