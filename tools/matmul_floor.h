#pragma once

#include <utility>
#include <vector>

#include "core/device.h"
#include "ops/matmul.h"

namespace elwise::tools {

/// The least time in ms that these products of `dtype` (f32 or bf16) take on `device`, each shape as often as
/// its count says: they run alone, in this process and with its threads. On the CPU the fastest of oneDNN's
/// plain matmul, its matmul with the second operand packed beforehand, and (f32) its sgemm counts for each
/// shape, on a GPU cuBLASLt's (medians of several runs). What a training step's time is compared with.
double measure_matmul_floor_ms(const std::vector<std::pair<MatmulShape, int64_t>>& products, DType dtype,
                               Device device);

}  // namespace elwise::tools
