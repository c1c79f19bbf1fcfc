#pragma once

#include "ops/attention_options.h"

namespace elwise {

/// Element-wise attention in full (eq. 2 of arXiv 2501.05730), for each channel on its own:
/// y_i = sum_j exp(-(q_i - k_j)^2) v_j / sum_j exp(-(q_i - k_j)^2) over the visible keys j.
/// q, k, v, y: [batch, length, channels], f32, f64 or bf16. O(length^2 channels) time, O(length
/// channels) memory. Differentiable. Throws Error for shapes that do not fit.
Tensor ea(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionOptions& options = {});

}  // namespace elwise
