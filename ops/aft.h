#pragma once

#include "ops/attention_options.h"

namespace elwise {

/// The Attention Free Transformer ("AFT-full", Zhai et al., arXiv 2105.14103; eq. 19 of arXiv 2501.05730),
/// for each channel on its own: y_i = sigmoid(q_i) sum_j exp(k_j + w_ij) v_j / sum_j exp(k_j + w_ij) over the
/// visible keys. The sigmoid is the original's. q, k, v, y: [batch, length, channels]; position_bias: w
/// [positions, positions], shared by all channels, of which the top left [length, length] is used; f32,
/// f64 or bf16. O(length^2 channels) time in matrix products, O(length channels + length^2) memory: backward
/// keeps q, k, v and two values for each output, and recomputes exp(k) and exp(w). Finite, and y / sigmoid(q)
/// between the values, for keys and biases of any size. Differentiable. Throws Error for shapes that do not
/// fit.
Tensor aft(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& position_bias,
           const AttentionOptions& options = {});

}  // namespace elwise
