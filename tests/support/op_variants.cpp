#include "tests/support/op_variants.h"

#include <cmath>

#include "autograd/grad_mode.h"
#include "ops/elementwise.h"
#include "ops/reduce.h"
#include "ops/view.h"

namespace elwise::testing {
namespace {

bool is_differentiated(const Tensor& input) {
  return input.defined() && input.dtype() == DType::f64;
}

Tensor flat(const Tensor& x) {
  return reshape(x, Shape{x.count()});
}

/// The elements of x behind one more, flat.
Tensor behind_one(const Tensor& x) {
  return concat({zeros({1}, x.options()), flat(x)}, 0);
}

/// A function of tensors with the same size as `x`, one for each element.
Tensor map(const Tensor& x, const std::function<double(double)>& function) {
  Values values = values_of(x);
  for (double& value : values) value = function(value);
  return from_vector(values, x.shape());
}

}  // namespace

OpTest unaligned(const OpTest& test) {
  OpTest result = test;
  result.name += " unaligned";
  for (Tensor& input : result.inputs) {
    if (input.defined()) input = behind_one(input);
  }
  result.op = [test](const std::vector<Tensor>& inputs) {
    std::vector<Tensor> views = inputs;
    for (size_t i = 0; i < views.size(); ++i) {
      if (!views[i].defined()) continue;
      views[i] = reshape(slice(views[i], 0, 1, views[i].count()), test.inputs[i].shape());
    }
    return behind_one(test.op(views));  // whose backward hands on a slice of the gradient
  };
  result.naive = [test](const std::vector<Values>& inputs) {
    std::vector<Values> views = inputs;
    for (Values& view : views) {
      if (!view.empty()) view.erase(view.begin());
    }
    Values output = test.naive(views);
    output.insert(output.begin(), 0);
    return output;
  };
  return result;
}

OpTest differentiated_alone(const OpTest& test, size_t i) {
  OpTest result = test;
  result.name += " by input " + std::to_string(i) + " alone";
  std::vector<Tensor> constants(test.inputs.size());
  for (size_t j = 0; j < constants.size(); ++j) {
    if (j == i || !is_differentiated(test.inputs[j])) continue;
    constants[j] = cast(cast(test.inputs[j], DType::bf16), DType::f64);  // the same in all dtypes
    result.inputs[j] = Tensor();
  }
  result.op = [test, i, constants](const std::vector<Tensor>& inputs) {
    std::vector<Tensor> all = inputs;
    for (size_t j = 0; j < all.size(); ++j) {
      if (constants[j].defined()) all[j] = to(cast(constants[j], inputs[i].dtype()), inputs[i].device());
    }
    return test.op(all);
  };
  result.naive = [test, constants](const std::vector<Values>& inputs) {
    std::vector<Values> all = inputs;
    for (size_t j = 0; j < all.size(); ++j) {
      if (constants[j].defined()) all[j] = values_of(constants[j]);
    }
    return test.naive(all);
  };
  return result;
}

void check_direction(const OpTest& test) {
  constexpr double kStep = 1e-5;
  std::vector<Tensor> leaves = test.inputs, above = test.inputs, below = test.inputs,
                      directions = test.inputs;
  for (size_t i = 0; i < test.inputs.size(); ++i) {
    if (!is_differentiated(test.inputs[i])) continue;
    leaves[i] = test.inputs[i].detach().set_requires_grad();
    directions[i] = uniform(test.inputs[i].shape(), -1, 1);
    above[i] = test.inputs[i] + directions[i] * kStep;
    below[i] = test.inputs[i] - directions[i] * kStep;
  }
  const Tensor output = test.op(leaves);
  const Tensor dy = uniform(output.shape());
  output.backward(dy);

  const NoGradGuard no_grad;
  const double numeric = sum((test.op(above) - test.op(below)) * dy).item() / (2 * kStep);
  double analytic = 0, magnitude = 0;
  for (size_t i = 0; i < test.inputs.size(); ++i) {
    if (!is_differentiated(test.inputs[i]) || !leaves[i].grad().defined()) continue;
    const Tensor products = leaves[i].grad() * directions[i];
    analytic += sum(products).item();
    magnitude += sum(abs(products)).item();
  }
  CHECK_MESSAGE(std::fabs(analytic - numeric) <= 1e-7 + 1e-6 * magnitude, test.name,
                ": the derivative along a random direction is ", analytic, ", numerically ", numeric);
}

void check_op_variants(const OpTest& test) {
  std::vector<OpTest> forms{test, unaligned(test)};
  int64_t differentiated = 0;
  for (const Tensor& input : test.inputs) differentiated += is_differentiated(input) ? 1 : 0;
  for (size_t i = 0; i < test.inputs.size() && differentiated > 1; ++i) {
    if (is_differentiated(test.inputs[i])) forms.push_back(differentiated_alone(test, i));
  }
  for (const OpTest& form : forms) {
    check_op(form);
    if (form.gradients) check_direction(form);
  }
}

Tensor uniform_beside(double point, double gap, const Shape& shape, double low, double high) {
  return map(uniform(shape, low, high), [=](double x) {
    const double distance = std::fabs(x - point);
    return distance < gap ? point + std::copysign(gap + distance, x - point) : x;
  });
}

Tensor on_grid(const Shape& shape, double offset) {
  return map(uniform(shape), [=](double x) { return std::floor(x * 8) / 8 + offset; });
}

Tensor all_different(const Shape& shape) {
  constexpr int64_t kStride = 7919;  // a prime: it walks through all positions
  const int64_t count = shape.count();
  int64_t position = 0;
  return map(zeros(shape, {.dtype = DType::f64}), [&](double) {
    position = (position + kStride) % count;
    return static_cast<double>(position - count / 2) / 16;
  });
}

}  // namespace elwise::testing
