#pragma once

#include "core/tensor.h"

namespace elwise {

/// Mean of -log softmax(logits)[target] over the rows whose target is not ignore_index; 0 if there is none.
/// logits [rows, classes], target i64 [rows] -> scalar. Throws Error for another target outside [0, classes).
Tensor cross_entropy(const Tensor& logits, const Tensor& target, int64_t ignore_index = -100);

/// cross_entropy(linear(x, weight, bias), target), every row counted, for many classes. Logits of more than
/// `most_logits` bytes exist only a block of rows at a time, and backward computes them again; their gradient
/// takes their place. x [rows, inputs], weight [classes, inputs], bias [classes] or undefined, target i64
/// [rows], rows > 0 -> scalar. Throws Error for a target outside [0, classes).
Tensor linear_cross_entropy(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& target,
                            int64_t most_logits = int64_t{256} << 20);

/// Mean of (x - target)^2 over all elements, a scalar. Same shapes. Differentiable in both.
Tensor mse_loss(const Tensor& x, const Tensor& target);

/// Mean of |x - target| over all elements, a scalar. Same shapes. Differentiable in both.
Tensor l1_loss(const Tensor& x, const Tensor& target);

}  // namespace elwise
