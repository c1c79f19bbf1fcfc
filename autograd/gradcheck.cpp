#include "autograd/gradcheck.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <sstream>

#include "autograd/grad_mode.h"

namespace elwise {
namespace {

using Function = std::function<Tensor(const std::vector<Tensor>&)>;

/// jacobian[i][o * count_i + e]: the derivative of output element o by element e of input i.
using Jacobian = std::vector<std::vector<double>>;

bool is_differentiated(const Tensor& input) {
  return input.defined() && input.requires_grad();
}

Tensor copy_of(const Tensor& tensor) {
  Tensor copy = empty(tensor.shape(), tensor.options());
  copy.copy_from(tensor);
  return copy;
}

std::vector<double> evaluate(const Function& function, const std::vector<Tensor>& inputs) {
  const NoGradGuard no_grad;
  const Tensor output = function(inputs);
  ELWISE_CHECK(output.dtype() == DType::f64, "gradcheck: expected the function to return f64, got ",
               output.dtype());
  return output.to_vector<double>();
}

Jacobian numeric_jacobian(const Function& function, const std::vector<Tensor>& inputs, int64_t outputs,
                          double step) {
  Jacobian jacobian(inputs.size());
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!is_differentiated(inputs[i])) continue;
    const int64_t count = inputs[i].count();
    jacobian[i].resize(static_cast<size_t>(outputs * count));
    std::vector<Tensor> moved = inputs;
    for (int64_t e = 0; e < count; ++e) {
      const auto evaluate_at = [&](double offset) {
        moved[i] = copy_of(inputs[i]);  // a fresh one: the function may return its input
        moved[i].data<double>()[e] += offset;
        return evaluate(function, moved);
      };
      const std::vector<double> above = evaluate_at(step), below = evaluate_at(-step);
      for (int64_t o = 0; o < outputs; ++o) {
        jacobian[i][static_cast<size_t>(o * count + e)] =
            (above[static_cast<size_t>(o)] - below[static_cast<size_t>(o)]) / (2 * step);
      }
    }
  }
  return jacobian;
}

Jacobian analytic_jacobian(const Function& function, const std::vector<Tensor>& inputs, int64_t outputs) {
  Jacobian jacobian(inputs.size());
  for (int64_t o = 0; o < outputs; ++o) {
    std::vector<Tensor> leaves;
    for (const Tensor& input : inputs) {
      leaves.push_back(is_differentiated(input) ? copy_of(input).set_requires_grad() : input);
    }
    const GradModeGuard grad(true);
    const Tensor output = function(leaves);
    if (output.requires_grad()) {
      Tensor one_hot = empty(output.shape(), output.options());
      std::fill_n(one_hot.data<double>(), outputs, 0.0);
      one_hot.data<double>()[o] = 1;
      output.backward(one_hot);
    }
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (!is_differentiated(inputs[i])) continue;
      const Tensor gradient = leaves[i].grad();
      const auto count = static_cast<size_t>(inputs[i].count());
      const std::vector<double> row =
          gradient.defined() ? gradient.to_vector<double>() : std::vector<double>(count, 0);
      jacobian[i].insert(jacobian[i].end(), row.begin(), row.end());
    }
  }
  return jacobian;
}

}  // namespace

GradcheckResult gradcheck(const Function& function, const std::vector<Tensor>& inputs,
                          const GradcheckOptions& options) {
  ELWISE_CHECK(std::ranges::any_of(inputs, is_differentiated),
               "gradcheck: expected an input that requires its gradient, got none");
  for (const Tensor& input : inputs) {
    if (!is_differentiated(input)) continue;
    ELWISE_CHECK(input.dtype() == DType::f64 && input.device() == kCpu,
                 "gradcheck: expected inputs of f64 on cpu, got ", input.dtype(), " on ", input.device());
  }
  const auto outputs = static_cast<int64_t>(evaluate(function, inputs).size());
  const Jacobian numeric = numeric_jacobian(function, inputs, outputs, options.step);
  const Jacobian analytic = analytic_jacobian(function, inputs, outputs);

  GradcheckResult result{.passed = true, .worst = -std::numeric_limits<double>::infinity(), .message = {}};
  for (size_t i = 0; i < inputs.size(); ++i) {
    for (size_t entry = 0; entry < numeric[i].size(); ++entry) {
      const double expected = numeric[i][entry], actual = analytic[i][entry];
      double excess =
          std::fabs(actual - expected) - options.absolute - options.relative * std::fabs(expected);
      if (std::isnan(excess)) excess = std::numeric_limits<double>::infinity();
      if (excess <= result.worst) continue;
      const auto count = static_cast<size_t>(inputs[i].count());
      std::ostringstream text;
      text << "gradcheck: worst at input " << i << " " << inputs[i].shape() << " element " << entry % count
           << ", output element " << entry / count << ": analytic " << actual << ", numeric " << expected;
      result = {.passed = excess <= 0, .worst = excess, .message = text.str()};
    }
  }
  return result;
}

}  // namespace elwise
