#pragma once

#include "core/tensor.h"

namespace elwise {

/// exp(x) / sum exp(x) over dimension `dim`, the maximum subtracted first. f32 and f64; differentiable. Where
/// all x are -infinity: NaN, but for f32 and bf16 on a GPU, where cuDNN gives zeros.
Tensor softmax(const Tensor& x, int dim = -1);

}  // namespace elwise
