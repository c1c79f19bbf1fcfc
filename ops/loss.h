#pragma once

#include "core/tensor.h"

namespace elwise {

/// Mean of -log softmax(logits)[target] over the rows whose target is not ignore_index; 0 if there is none.
/// logits [rows, classes], target i64 [rows] -> scalar. Throws Error for another target outside [0, classes).
Tensor cross_entropy(const Tensor& logits, const Tensor& target, int64_t ignore_index = -100);

/// Mean of (x - target)^2 over all elements, a scalar. Same shapes. Differentiable in both.
Tensor mse_loss(const Tensor& x, const Tensor& target);

/// Mean of |x - target| over all elements, a scalar. Same shapes. Differentiable in both.
Tensor l1_loss(const Tensor& x, const Tensor& target);

}  // namespace elwise
