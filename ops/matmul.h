#pragma once

#include <vector>

#include "core/tensor.h"
#include "ops/elementwise.h"

namespace elwise {

struct MatmulOptions {
  bool transpose_a = false;  // a is stored [.., k, m]
  bool transpose_b = false;  // b is stored [.., n, k]
};

/// Matrix product of a [.., m, k] and b [.., k, n] -> [.., m, n]; the leading dimensions broadcast. f32, f64
/// or bf16 with sums in f32; differentiable. Throws Error for shapes that do not fit.
Tensor matmul(const Tensor& a, const Tensor& b, MatmulOptions options = {});

/// y = x weight^T + bias: x [.., inputs], weight [outputs, inputs], bias [outputs] or undefined -> [..,
/// outputs]. Differentiable. Throws Error for shapes that do not fit.
Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias = {});

/// gelu(linear(x, weight, bias), kind). Where no gradient is recorded the tanh form, which is cuBLASLt's, is
/// computed in place: on a GPU with the product.
Tensor linear_gelu(const Tensor& x, const Tensor& weight, const Tensor& bias = {}, Gelu kind = Gelu::tanh);

/// Lets f32 products on GPUs round their operands to TF32, which keeps 10 bits of the fraction (sums stay in
/// f32): many times the speed, for some 3 digits. For the whole program; off at first. The CPU never does.
void set_allow_tf32(bool allow);
bool tf32_allowed();

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
