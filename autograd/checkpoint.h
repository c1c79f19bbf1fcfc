#pragma once

#include <functional>
#include <vector>

#include "core/tensor.h"

namespace elwise {

/// Computes function(inputs) without keeping what its backward needs; backward() runs the function once more,
/// with the same random numbers, to get it. Trades one extra forward pass for the memory of the activations
/// in between. The function may use parameters that are not among the inputs; their gradients accumulate as
/// usual. It must compute the same result when it is called again, and return a tensor that it computed from
/// inputs or parameters.
Tensor checkpoint(const std::function<Tensor(const std::vector<Tensor>&)>& function,
                  const std::vector<Tensor>& inputs);

}  // namespace elwise
