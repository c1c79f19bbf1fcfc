#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace elwise {

struct GradcheckOptions {
  double step = 1e-5;      // h of (f(x + h) - f(x - h)) / 2h
  double absolute = 1e-7;  // an entry passes when |analytic - numeric| <= absolute + relative * |numeric|
  double relative = 1e-6;
};

struct GradcheckResult {
  bool passed = false;
  double worst =
      0;  // the largest |analytic - numeric| - (absolute + relative * |numeric|); negative when passed
  /// The worst entry: which input and output element, both values, or what went wrong.
  std::string message;

  explicit operator bool() const { return passed; }
};

/// Compares the gradients that backward() computes with central differences: the full Jacobian, every element
/// of every input that requires its gradient against every element of the output. Inputs are f64 tensors on
/// the CPU; `function` must return an f64 tensor and compute the same values when called again. Costs 2
/// evaluations per input element and a backward pass per output element: use small shapes. Throws Error for
/// inputs of another dtype.
GradcheckResult gradcheck(const std::function<Tensor(const std::vector<Tensor>&)>& function,
                          const std::vector<Tensor>& inputs, const GradcheckOptions& options = {});

}  // namespace elwise
