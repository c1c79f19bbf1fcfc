#pragma once

#include "core/random.h"
#include "core/tensor.h"

namespace elwise {

struct FeedForwardOptions {
  double dropout = 0;      // the probability of a zero after GELU (ops/dropout.h)
  bool keep_inner = true;  // false: backward computes GELU's input again, for a product more and less memory
};

/// A Transformer's feed-forward network (Vaswani et al., arXiv 1706.03762):
/// linear(dropout(gelu(linear(x, inner_weight, inner_bias))), outer_weight, outer_bias), with the exact GELU.
/// x [.., inputs], inner_weight [inner, inputs], outer_weight [outputs, inner], inner_bias [inner] and
/// outer_bias [outputs] or undefined -> [.., outputs].
///
/// Backward keeps x and, with keep_inner, GELU's input; what lies between it computes again, a block of rows
/// at a time, so that beside these nothing of the inner size exists for all rows. Differentiable. Throws
/// Error for shapes that do not fit and unless 0 <= dropout < 1.
Tensor feed_forward(const Tensor& x, const Tensor& inner_weight, const Tensor& inner_bias,
                    const Tensor& outer_weight, const Tensor& outer_bias,
                    const FeedForwardOptions& options = {}, Generator& generator = default_generator());

}  // namespace elwise
