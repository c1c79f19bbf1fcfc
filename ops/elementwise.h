#pragma once

#include "autograd/engine.h"  // accumulate, ones_like
#include "core/tensor.h"

// Elementwise ops on f32 and f64, differentiable. Two tensors broadcast as in NumPy; they must agree in dtype
// and device. Every op throws Error, naming itself, for other dtypes and shapes that do not broadcast.

namespace elwise {

Tensor add(const Tensor& a, const Tensor& b);
Tensor sub(const Tensor& a, const Tensor& b);
Tensor mul(const Tensor& a, const Tensor& b);
Tensor div(const Tensor& a, const Tensor& b);
/// A NaN on either side gives NaN; where both are equal each gets half of the gradient.
Tensor maximum(const Tensor& a, const Tensor& b);
Tensor minimum(const Tensor& a, const Tensor& b);

Tensor add(const Tensor& x, double scalar);
Tensor mul(const Tensor& x, double scalar);

Tensor neg(const Tensor& x);
/// The gradient at 0 is 0.
Tensor abs(const Tensor& x);
Tensor exp(const Tensor& x);
Tensor log(const Tensor& x);
Tensor sqrt(const Tensor& x);
Tensor tanh(const Tensor& x);
Tensor sigmoid(const Tensor& x);
/// The gradient at 0 is 0.
Tensor relu(const Tensor& x);
/// x where x > 0, else exp(x) - 1.
Tensor elu(const Tensor& x);
/// Limits to [low, high]; the gradient is 1 inside and at the bounds, 0 outside. Throws Error unless low <=
/// high.
Tensor clamp(const Tensor& x, double low, double high);
/// x to an integer power, by repeated multiplication; negative ones are powers of 1 / x.
Tensor pow(const Tensor& x, int exponent);

/// The Gaussian error linear unit (Hendrycks & Gimpel, arXiv 1606.08415): x Phi(x), or its tanh approximation
/// 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).
enum class Gelu : uint8_t { exact, tanh };
Tensor gelu(const Tensor& x, Gelu kind = Gelu::exact);

/// condition ? a : b, all three broadcast. condition is a bool tensor.
Tensor where(const Tensor& condition, const Tensor& a, const Tensor& b);
/// `value` where mask is true, x elsewhere. mask is a bool tensor that broadcasts to x's shape.
Tensor masked_fill(const Tensor& x, const Tensor& mask, double value);

/// The elements converted to another dtype (bool: x != 0; integers: the lowest one for a floating number
/// beyond their range and for NaN); between floating dtypes the gradient is converted back.
Tensor cast(const Tensor& x, DType dtype);
/// A copy on another device, or x itself if it is there already; differentiable between cpu and cuda. To meta
/// only the shape remains; from meta throws Error.
Tensor to(const Tensor& x, Device device);

// Making tensors. These take no part in autograd.

Tensor full(const Shape& shape, double value, TensorOptions options = {});
Tensor zeros(const Shape& shape, TensorOptions options = {});
Tensor ones(const Shape& shape, TensorOptions options = {});
Tensor zeros_like(const Tensor& like);
/// 0, 1, .. count - 1.
Tensor arange(int64_t count, TensorOptions options = {.dtype = DType::i64});

/// Overwrites every element, in place (any dtype); not recorded.
void fill(const Tensor& x, double value);

inline Tensor operator+(const Tensor& a, const Tensor& b) {
  return add(a, b);
}
inline Tensor operator-(const Tensor& a, const Tensor& b) {
  return sub(a, b);
}
inline Tensor operator*(const Tensor& a, const Tensor& b) {
  return mul(a, b);
}
inline Tensor operator/(const Tensor& a, const Tensor& b) {
  return div(a, b);
}
inline Tensor operator-(const Tensor& x) {
  return neg(x);
}
inline Tensor operator+(const Tensor& x, double scalar) {
  return add(x, scalar);
}
inline Tensor operator+(double scalar, const Tensor& x) {
  return add(x, scalar);
}
inline Tensor operator-(const Tensor& x, double scalar) {
  return add(x, -scalar);
}
inline Tensor operator-(double scalar, const Tensor& x) {
  return add(neg(x), scalar);
}
inline Tensor operator*(const Tensor& x, double scalar) {
  return mul(x, scalar);
}
inline Tensor operator*(double scalar, const Tensor& x) {
  return mul(x, scalar);
}
inline Tensor operator/(const Tensor& x, double scalar) {
  return mul(x, 1 / scalar);
}
inline Tensor operator/(double scalar, const Tensor& x) {
  return mul(pow(x, -1), scalar);
}

}  // namespace elwise
