#pragma once

#include "ops/attention_options.h"

namespace elwise {

/// Linear attention (eq. 18 of arXiv 2501.05730; Katharopoulos et al., arXiv 2006.16236): for each head, with
/// the feature map phi(x) = elu(x) + 1, y_i = (sum_j phi(k_j) v_j^T)^T phi(q_i) / (sum_j phi(k_j) . phi(q_i))
/// over the visible keys. q, k, v, y: [batch, length, channels], f32, f64 or bf16, the heads side by side in
/// the channels and read in place. O(length channels^2 / heads) time, O(length channels) memory: backward
/// keeps q, k, v, y and a denominator for each query and head. The causal form is computed in chunks of 64
/// rows; what it carries from one to the next is the whole state of a recurrence over tokens: S = sum_j
/// phi(k_j) v_j^T [batch, heads, head, head] and z = sum_j phi(k_j) [batch, heads, head]. Finite for queries
/// and keys up to 1e4 in magnitude, however small all features are. Differentiable. Throws Error unless heads
/// divides channels.
Tensor linear_attention(const Tensor& q, const Tensor& k, const Tensor& v, int64_t heads,
                        const AttentionOptions& options = {});

}  // namespace elwise
