#pragma once

#include <vector>

#include "core/tensor.h"

namespace elwise {

struct MatmulOptions {
  bool transpose_a = false;  // a is stored [.., k, m]
  bool transpose_b = false;  // b is stored [.., n, k]
};

/// Matrix product of a [.., m, k] and b [.., k, n] -> [.., m, n]; the leading dimensions broadcast. f32 and
/// f64; differentiable. Throws Error for shapes that do not fit.
Tensor matmul(const Tensor& a, const Tensor& b, MatmulOptions options = {});

/// y = x weight^T + bias: x [.., inputs], weight [outputs, inputs], bias [outputs] or undefined -> [..,
/// outputs]. Differentiable. Throws Error for shapes that do not fit.
Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias = {});

/// The size of one matrix product (or of a batch of `outer * inner` of them).
struct MatmulShape {
  int64_t m, n, k;
  bool transpose_a, transpose_b;
  int64_t outer, inner;

  auto operator<=>(const MatmulShape&) const = default;
};

/// Collects the shape of every matrix product that the calling thread dispatches, on any device, until the
/// end of the scope.
class MatmulLog {
 public:
  MatmulLog();
  ~MatmulLog();
  MatmulLog(const MatmulLog&) = delete;
  MatmulLog& operator=(const MatmulLog&) = delete;

  const std::vector<MatmulShape>& shapes() const { return shapes_; }

 private:
  friend void log_matmul(const MatmulShape& shape);
  std::vector<MatmulShape> shapes_;
  MatmulLog* previous_;
};

}  // namespace elwise
