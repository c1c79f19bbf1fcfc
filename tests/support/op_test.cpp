#include "tests/support/op_test.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "autograd/gradcheck.h"
#include "core/parallel.h"
#include "ops/dropout.h"
#include "ops/elementwise.h"

namespace elwise::testing {
namespace {

Generator& test_generator() {
  static Generator generator(20250109);
  return generator;
}

bool is_differentiated(const Tensor& input) {
  return input.defined() && input.dtype() == DType::f64;
}

/// The inputs as fresh leaves of `dtype`.
std::vector<Tensor> leaves(const std::vector<Tensor>& inputs, DType dtype, bool gradients) {
  std::vector<Tensor> result;
  for (const Tensor& input : inputs) {
    result.push_back(is_differentiated(input) ? leaf(values_of(input), input.shape(), dtype) : input);
    if (is_differentiated(input) && !gradients) result.back().set_requires_grad(false);
  }
  return result;
}

struct Evaluation {
  Tensor output;
  std::vector<Tensor> gradients;  // of the differentiated inputs
};

/// Runs the op, and backward from `dy` (cast to the op's dtype) where it is defined.
Evaluation evaluate(const OpTest& test, DType dtype, const Tensor& dy) {
  const std::vector<Tensor> inputs = leaves(test.inputs, dtype, test.gradients);
  Evaluation result{test.op(inputs), {}};
  if (!dy.defined()) return result;
  result.output.backward(dtype == DType::f64 ? dy : cast(dy, dtype));
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!is_differentiated(test.inputs[i])) continue;
    const Tensor gradient = inputs[i].grad();
    result.gradients.push_back(gradient.defined() ? gradient : zeros(inputs[i].shape(), inputs[i].options()));
  }
  return result;
}

bool same_bits(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() &&
         std::memcmp(a.data(), b.data(), static_cast<size_t>(a.count() * size_of(a.dtype()))) == 0;
}

void check_values(const OpTest& test, DType dtype, const Tensor& output) {
  std::vector<Values> inputs;
  for (const Tensor& input : test.inputs) {
    inputs.push_back(input.defined() ? values_of(is_differentiated(input) ? cast(input, dtype) : input)
                                     : Values());
  }
  check_close(values_of(output), test.naive(inputs), dtype == DType::f64 ? kF64Tolerance : kF32Tolerance,
              test.name + " " + std::string(name_of(dtype)));
}

void check_jacobian(const OpTest& test, int64_t outputs) {
  int64_t entries = 0;
  for (const Tensor& input : test.inputs) entries += is_differentiated(input) ? input.count() * outputs : 0;
  if (entries > kJacobianEntries) return;
  const GradcheckResult result = gradcheck(test.op, leaves(test.inputs, DType::f64, true));
  CHECK_MESSAGE(result.passed, test.name, ": ", result.message);
}

void check_thread_counts(const OpTest& test, DType dtype, const Tensor& dy, const Evaluation& expected) {
  const int threads = num_threads();
  for (const int count : {1, 2, 3}) {
    set_num_threads(count);
    const Evaluation actual = evaluate(test, dtype, dy);
    CHECK_MESSAGE(same_bits(actual.output, expected.output), test.name, ": other bits with ", count,
                  " threads");
    for (size_t i = 0; i < actual.gradients.size(); ++i) {
      CHECK_MESSAGE(same_bits(actual.gradients[i], expected.gradients[i]), test.name,
                    ": other bits in gradient ", i, " with ", count, " threads");
    }
  }
  set_num_threads(threads);
}

void check_meta(const OpTest& test, const Shape& expected) {
  std::vector<Tensor> inputs;
  for (const Tensor& input : leaves(test.inputs, DType::f32, false)) {
    inputs.push_back(input.defined() ? to(input, kMeta) : input);
    if (test.gradients && input.defined() && input.dtype() == DType::f32) inputs.back().set_requires_grad();
  }
  const Tensor output = test.op(inputs);
  CHECK_MESSAGE(output.shape() == expected, test.name, ": another shape on meta");
  if (output.requires_grad()) output.backward(empty(expected, output.options()));
}

}  // namespace

Values values_of(const Tensor& tensor) {
  return tensor.dtype() == DType::f64 ? tensor.to_vector<double>()
                                      : cast(tensor.detach(), DType::f64).to_vector<double>();
}

Tensor leaf(const Values& values, const Shape& shape, DType dtype) {
  const Tensor wide = from_vector(values, shape);
  return (dtype == DType::f64 ? wide : cast(wide, dtype)).detach().set_requires_grad();
}

Tensor uniform(const Shape& shape, double low, double high) {
  const Tensor x = empty(shape, {.dtype = DType::f64});
  fill_uniform(x, low, high, test_generator());
  return x;
}

void check_close(const Values& actual, const Values& expected, Tolerance tolerance, const std::string& what,
                 double terms) {
  const std::string fault = mismatch(actual, expected, tolerance, what, terms);
  CHECK_MESSAGE(fault.empty(), fault);
}

void check_op(const OpTest& test) {
  for (const DType dtype : {DType::f64, DType::f32}) {
    const Tensor output = evaluate(test, dtype, {}).output;
    check_values(test, dtype, output);
    Tensor dy;
    if (test.gradients) dy = uniform(output.shape());
    check_thread_counts(test, dtype, dy, evaluate(test, dtype, dy));
  }
  const Tensor output = evaluate(test, DType::f64, {}).output;
  check_meta(test, output.shape());
  if (!test.gradients) return;
  check_jacobian(test, output.count());
  // f32 gradients against f64 ones at the same point: the inputs rounded to f32.
  OpTest rounded = test;
  for (Tensor& input : rounded.inputs) {
    if (is_differentiated(input)) input = cast(cast(input, DType::f32), DType::f64);
  }
  constexpr double kLargestGradient = 2;
  const Tensor dy =
      cast(cast(uniform(output.shape(), -kLargestGradient, kLargestGradient), DType::f32), DType::f64);
  const Evaluation wide = evaluate(rounded, DType::f64, dy), narrow = evaluate(rounded, DType::f32, dy);
  for (size_t i = 0; i < wide.gradients.size(); ++i) {
    check_close(values_of(narrow.gradients[i]), values_of(wide.gradients[i]), kF32Tolerance,
                test.name + " f32 gradient " + std::to_string(i), kLargestGradient);
  }
}

void check_error(const std::function<void()>& call, const std::string& message) {
  std::string actual = "no error";
  try {
    call();
  } catch (const Error& error) {
    actual = error.what();
  }
  CHECK(actual == message);
}

}  // namespace elwise::testing
