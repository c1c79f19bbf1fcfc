#pragma once

#include "core/tensor.h"

namespace elwise {

/// Rows of a table: weight [rows, width], index i64 of any shape -> [index shape..., width]. Differentiable
/// in weight. Throws Error for an index outside [0, rows).
Tensor embedding(const Tensor& weight, const Tensor& index);

/// Slices of dimension `dim` in the order of `index` (i64, [n]), whose size becomes n. Any dtype;
/// differentiable where x is f32 or f64. Throws Error for an index out of range.
Tensor index_select(const Tensor& x, int dim, const Tensor& index);

/// y[.., j, ..] = x[.., index[.., j, ..], ..] along `dim`: index (i64) has x's shape except along `dim`.
/// Differentiable. Throws Error for an index out of range.
Tensor gather(const Tensor& x, int dim, const Tensor& index);

/// The gradient of gather: dy (of index's shape) added into zeros of `shape`.
Tensor gather_backward(const Tensor& dy, const Shape& shape, int dim, const Tensor& index);

}  // namespace elwise
