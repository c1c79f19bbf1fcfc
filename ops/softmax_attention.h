#pragma once

#include "core/random.h"
#include "ops/attention_options.h"

namespace elwise {

/// Softmax self-attention (eq. 17 of arXiv 2501.05730; Vaswani et al., arXiv 1706.03762) with the weights
/// materialised: for each head, y = dropout(softmax(q k^T / sqrt(channels / heads))) v. q, k, v, y: [batch,
/// length, channels], the heads side by side in the channels and read in place. Keeps the [batch, heads,
/// length, length] weights for backward. Differentiable. Throws Error unless heads divides channels and 0 <=
/// dropout_p < 1.
Tensor softmax_attention(const Tensor& q, const Tensor& k, const Tensor& v, int64_t heads,
                         const AttentionOptions& options = {}, double dropout_p = 0,
                         Generator& generator = default_generator());

/// softmax_attention without ever holding the weights (FlashAttention: Dao et al., arXiv 2205.14135): the
/// same result to rounding, dropout of the same weights included, in O(length) memory; keeps y and the
/// logsumexp of each query's scores for backward, which finds the weights anew. Differentiable. Throws Error
/// as softmax_attention does.
Tensor softmax_attention_tiled(const Tensor& q, const Tensor& k, const Tensor& v, int64_t heads,
                               const AttentionOptions& options = {}, double dropout_p = 0,
                               Generator& generator = default_generator());

}  // namespace elwise
