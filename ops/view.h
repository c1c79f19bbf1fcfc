#pragma once

#include <vector>

#include "core/tensor.h"

// Ops that move elements. All dtypes; differentiable where the dtype is floating. Tensors are always dense,
// so what cannot share storage copies.

namespace elwise {

/// The same elements under another shape, sharing storage. One size may be -1: it follows from the rest.
/// Throws Error where the counts differ.
Tensor reshape(const Tensor& x, std::initializer_list<int64_t> sizes);
Tensor reshape(const Tensor& x, const Shape& shape);

/// A copy of the elements: PyTorch's clone().
Tensor clone(const Tensor& x);

/// Dimensions a and b exchanged (a copy).
Tensor transpose(const Tensor& x, int a, int b);

/// Elements begin .. end - 1 of dimension `dim`. Shares storage where the outer dimensions have size 1 (so
/// always for dim 0); copies otherwise. Throws Error unless 0 <= begin <= end <= size.
Tensor slice(const Tensor& x, int dim, int64_t begin, int64_t end);

/// Consecutive slices of the given sizes, which must add up to the dimension.
std::vector<Tensor> split(const Tensor& x, const std::vector<int64_t>& sizes, int dim);

/// Joins along an existing dimension; the other sizes must agree. Throws Error for an empty list.
Tensor concat(const std::vector<Tensor>& parts, int dim);

/// Joins tensors of one shape along a new dimension at `dim`.
Tensor stack(const std::vector<Tensor>& parts, int dim);

/// A copy repeated to `shape`, as broadcasting does.
Tensor expand(const Tensor& x, const Shape& shape);

}  // namespace elwise
