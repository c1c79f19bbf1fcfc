#pragma once

#include "tests/support/op_test.h"

// Forms of one op test that reach code which the plain form does not.

namespace elwise::testing {

/// The op on views that start one element into a buffer, so that no pointer to an input, or to the gradient
/// of the output, is aligned to a vector.
OpTest unaligned(const OpTest& test);

/// The op with input `i` as the only one that asks for its gradient; the other f64 inputs are constants.
OpTest differentiated_alone(const OpTest& test, size_t i);

/// Compares the gradients in f64 with a central difference along one random direction: for shapes whose full
/// Jacobian is too large.
void check_direction(const OpTest& test);

/// check_op of the test, of its unaligned form and, where several inputs are differentiated, of each alone;
/// and check_direction.
void check_op_variants(const OpTest& test);

/// Uniform in [low, high), but `gap` or more away from `point`, where the op has a kink or a pole.
Tensor uniform_beside(double point, double gap, const Shape& shape, double low = -2, double high = 2);

/// Multiples of 1/8 plus `offset` (0 or 1/16): two tensors of different offsets have no element in common.
Tensor on_grid(const Shape& shape, double offset = 0);

/// Elements that all differ, by 1/16 or more, in a mixed order; f32 holds them exactly.
Tensor all_different(const Shape& shape);

}  // namespace elwise::testing
