#include "nn/embedding.h"

#include <cmath>

#include "core/parallel.h"
#include "ops/dropout.h"
#include "ops/elementwise.h"
#include "ops/embedding.h"

namespace elwise::nn {

Embedding::Embedding(int64_t rows, int64_t width, TensorOptions options)
    : weight_(empty({rows, width}, options)) {
  fill_normal(weight_, 0, 1);
  add_parameter("weight", weight_);
}

Tensor Embedding::forward(const Tensor& index) const {
  return embedding(weight_, index);
}

Tensor sinusoidal_positions(int64_t length, int64_t width, TensorOptions options) {
  if (options.device == kMeta) return empty({length, width}, options);
  const DType computed = options.dtype == DType::bf16 ? DType::f32 : options.dtype;
  const Tensor host = empty({length, width}, {.dtype = computed});
  dispatch_f32_f64(computed, "sinusoidal_positions", [&]<class T>() {
    parallel_for(width, 1, [&](int64_t begin, int64_t end) {
      for (int64_t col = begin; col < end; ++col) {
        const double rate = std::pow(10000.0, -static_cast<double>(col / 2 * 2) / static_cast<double>(width));
        for (int64_t row = 0; row < length; ++row) {
          const double angle = static_cast<double>(row) * rate;
          host.data<T>()[row * width + col] =
              static_cast<T>(col % 2 == 0 ? std::sin(angle) : std::cos(angle));
        }
      }
    });
  });
  return to(computed == options.dtype ? host : cast(host, options.dtype), options.device);
}

}  // namespace elwise::nn
