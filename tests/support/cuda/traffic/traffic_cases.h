#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/dtype.h"

namespace emulation {

/// Ops whose kernels' traffic is counted, on cuda:0.
struct TrafficCase {
  std::string name;  // the op, what sets it apart, its shape
  /// Makes the operands; the result then runs the ops.
  std::function<std::function<void()>(elwise::DType dtype)> prepare;
};

/// Every op with CUDA kernels of our own, forward and backward, at shapes large enough that edges and what
/// grows slower than the tensors are a small part, and aligned.
std::vector<TrafficCase> traffic_cases();

}  // namespace emulation
