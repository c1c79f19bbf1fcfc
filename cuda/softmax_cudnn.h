#pragma once

#include "ops/softmax_kernels.h"

namespace elwise::cuda {

/// softmax_forward without key_mask and causality: no row is empty, and pointers are aligned to 16 bytes.
void softmax_forward_cudnn(const SoftmaxForward& args);
/// softmax_backward: no row is empty, and pointers are aligned to 16 bytes.
void softmax_backward_cudnn(const SoftmaxBackward& args);

}  // namespace elwise::cuda
