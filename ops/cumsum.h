#pragma once

#include "core/tensor.h"

namespace elwise {

/// Running sums along `dim`: y_i = sum of x_j over j <= i, or over j >= i when reverse. f32 and f64;
/// differentiable.
Tensor cumsum(const Tensor& x, int dim, bool reverse = false);

}  // namespace elwise
