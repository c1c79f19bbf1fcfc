#pragma once

#include "core/tensor.h"

// Reductions of f32 and f64 tensors. Sums are added in an order that depends on the shape only.

namespace elwise {

/// The sum of all elements, a scalar.
Tensor sum(const Tensor& x);
/// The sum over dimension `dim`, which stays with size 1 when keep_dim.
Tensor sum(const Tensor& x, int dim, bool keep_dim = false);

/// Throws Error for an empty dimension.
Tensor mean(const Tensor& x);
Tensor mean(const Tensor& x, int dim, bool keep_dim = false);

struct MaxResult {
  Tensor values;
  Tensor indices;  // i64
};
/// The largest element along `dim` and where it first stands; a NaN counts as the largest. The gradient goes
/// to that element. Throws Error for an empty dimension.
MaxResult max(const Tensor& x, int dim, bool keep_dim = false);
/// The largest of all elements, a scalar.
Tensor max(const Tensor& x);
/// max(x, dim, keep_dim).indices, without a gradient.
Tensor argmax(const Tensor& x, int dim, bool keep_dim = false);

/// Sums the dimensions in which x was broadcast from `shape`: the gradient of broadcasting. x itself where
/// none was.
Tensor sum_to(const Tensor& x, const Shape& shape);

}  // namespace elwise
