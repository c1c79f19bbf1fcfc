#include "nn/layer_norm.h"

#include "ops/elementwise.h"

namespace elwise::nn {

LayerNorm::LayerNorm(int64_t cols, double eps, TensorOptions options)
    : weight_(ones({cols}, options)), bias_(zeros({cols}, options)), eps_(eps) {
  add_parameter("weight", weight_);
  add_parameter("bias", bias_);
}

}  // namespace elwise::nn
