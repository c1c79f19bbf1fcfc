#pragma once

#include <utility>
#include <vector>

#include "ops/matmul.h"

namespace elwise::tools {

/// The least time in ms that these f32 products take, each shape as often as its count says: they run alone,
/// in this process and with its threads, and for each shape the fastest of oneDNN's plain matmul, its matmul
/// with the second operand packed beforehand, and its sgemm counts (medians of several runs). What a training
/// step's time is compared with.
double measure_matmul_floor_ms(const std::vector<std::pair<MatmulShape, int64_t>>& products);

}  // namespace elwise::tools
