#pragma once

#include <vector>

#include "core/tensor.h"

namespace elwise {

/// Backward from several tensors at once: adds to the grad() of every leaf below `outputs` the gradients that
/// follow from `gradients` (one per output; undefined: 1, for one-element outputs). Frees the graph.
/// Gradients carry no graph themselves: differentiating twice is not supported. Throws Error for outputs that
/// require no gradient, for a shape or dtype that does not match, and for a graph that was freed before.
/// Tensors that are moved here are freed as soon as they have served.
void backward(std::vector<Tensor> outputs, std::vector<Tensor> gradients);

// The two ops that the engine itself needs, defined in ops/elementwise.cpp. Not recorded.

/// into += value, elementwise, in place; same shape, dtype and device.
void accumulate(const Tensor& into, const Tensor& value);
/// A tensor of ones of the shape, dtype and device of `like`.
Tensor ones_like(const Tensor& like);

}  // namespace elwise
