#pragma once

#include "core/device.h"
#include "ops/matmul_kernels.h"

namespace elwise {

/// Dispatches a product with the workspace that it needs, and logs its shape (MatmulLog).
/// `problem.workspace` is filled in here. The one way from ops to the matmul kernels.
void run_matmul(Device device, Matmul problem);

}  // namespace elwise
