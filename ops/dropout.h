#pragma once

#include "core/random.h"
#include "core/tensor.h"

namespace elwise {

/// Zeroes each element with probability p and scales the others by 1 / (1 - p) (Srivastava et al., 2014).
/// Backward draws the mask again instead of keeping it. x itself when p is 0. Throws Error unless 0 <= p < 1.
Tensor dropout(const Tensor& x, double p, Generator& generator = default_generator());

/// Overwrites x with numbers uniform in [low, high), in place; not recorded.
void fill_uniform(const Tensor& x, double low, double high, Generator& generator = default_generator());

/// Overwrites x with normal numbers of the given mean and standard deviation, in place; not recorded.
void fill_normal(const Tensor& x, double mean, double deviation, Generator& generator = default_generator());

/// New tensors of uniform [0, 1) and standard normal numbers.
Tensor rand(const Shape& shape, TensorOptions options = {}, Generator& generator = default_generator());
Tensor randn(const Shape& shape, TensorOptions options = {}, Generator& generator = default_generator());

}  // namespace elwise
