#include "tests/support/op_test.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "autograd/gradcheck.h"
#include "core/parallel.h"
#include "ops/dropout.h"
#include "ops/elementwise.h"

namespace elwise::testing {
namespace {

/// Starts anew in each test case, which so draws the same numbers whatever ran before it.
Generator& test_generator() {
  static Generator generator;
  static const doctest::TestCaseData* drawing = nullptr;
  const doctest::TestCaseData* test = doctest::getContextOptions()->currentTest;
  if (test != drawing) generator = Generator(20250109);
  drawing = test;
  return generator;
}

bool is_differentiated(const Tensor& input) {
  return input.defined() && input.dtype() == DType::f64;
}

/// The inputs on `device`, the differentiated ones as fresh leaves of `dtype`.
std::vector<Tensor> leaves(const std::vector<Tensor>& inputs, DType dtype, bool gradients,
                           Device device = kCpu) {
  std::vector<Tensor> result;
  for (const Tensor& input : inputs) {
    if (!is_differentiated(input)) {
      result.push_back(input.defined() ? to(input, device) : input);
      continue;
    }
    const Tensor elements = to(cast(from_vector(values_of(input), input.shape()), dtype), device);
    result.push_back(elements.detach().set_requires_grad(gradients));
  }
  return result;
}

struct Evaluation {
  Tensor output;
  std::vector<Tensor> gradients;  // of the differentiated inputs
};

/// Runs the op, and backward from `dy` (cast to the op's dtype) where it is defined.
Evaluation evaluate(const OpTest& test, DType dtype, const Tensor& dy, Device device = kCpu) {
  const std::vector<Tensor> inputs = leaves(test.inputs, dtype, test.gradients, device);
  Evaluation result{test.op(inputs), {}};
  if (!dy.defined()) return result;
  const DType output = result.output.dtype();  // of a loss in bf16, f32
  result.output.backward(to(output == DType::f64 ? dy : cast(dy, output), device));
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!is_differentiated(test.inputs[i])) continue;
    const Tensor gradient = inputs[i].grad();
    result.gradients.push_back(gradient.defined() ? gradient : zeros(inputs[i].shape(), inputs[i].options()));
  }
  return result;
}

bool same_bits(const Tensor& a, const Tensor& b) {
  if (a.shape() != b.shape() || a.dtype() != b.dtype()) return false;
  const Tensor left = to(a.detach(), kCpu), right = to(b.detach(), kCpu);
  return std::memcmp(left.data(), right.data(), static_cast<size_t>(a.count() * size_of(a.dtype()))) == 0;
}

/// The test with its inputs rounded to `dtype`, so that every wider dtype computes at the same point.
OpTest rounded_to(DType dtype, const OpTest& test) {
  OpTest rounded = test;
  for (Tensor& input : rounded.inputs) {
    if (is_differentiated(input)) input = cast(cast(input, dtype), DType::f64);
  }
  return rounded;
}

constexpr double kLargestGradient = 2;

/// An output gradient that `dtype` holds exactly.
Tensor output_gradient(const Shape& shape, DType dtype) {
  return cast(cast(uniform(shape, -kLargestGradient, kLargestGradient), dtype), DType::f64);
}

void check_values(const OpTest& test, DType dtype, const Tensor& output) {
  std::vector<Values> inputs;
  for (const Tensor& input : test.inputs) {
    inputs.push_back(input.defined() ? values_of(is_differentiated(input) ? cast(input, dtype) : input)
                                     : Values());
  }
  check_close(values_of(output), test.naive(inputs), tolerance_of(dtype),
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
    if (count == threads) continue;  // as expected came about
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

/// The magnitude that gradient `i` has the digits of. In bf16 products of `outputs` elements are rounded
/// before the sum over those that one of `inputs` elements takes part in; n terms of random sign come to
/// sqrt(n) of one, however small the sum happens to be.
double gradient_terms(const OpTest& test, DType dtype, size_t i, int64_t outputs, int64_t inputs) {
  if (dtype != DType::bf16) return kLargestGradient;
  double terms = inputs == 0 ? 1 : static_cast<double>(outputs) / static_cast<double>(inputs);
  if (i < test.bf16_uses.size()) terms = std::max(terms, static_cast<double>(test.bf16_uses[i]));
  return kLargestGradient * std::sqrt(std::max(terms, 1.0));
}

/// The op on the test device in `dtype` against itself on the CPU in f64.
void check_on_device(const OpTest& test, DType dtype) {
  if (dtype == DType::bf16 && !test.in_bf16) return;
  const Tolerance tolerance = tolerance_of(dtype);
  const std::string what = detail::concatenate(test.name, " ", name_of(dtype), " on ", test_device());
  const OpTest rounded = rounded_to(dtype, test);
  const Shape shape = evaluate(rounded, DType::f64, {}).output.shape();
  const Tensor dy = test.gradients ? output_gradient(shape, dtype) : Tensor();
  const Evaluation expected = evaluate(rounded, DType::f64, dy);
  const Evaluation actual = evaluate(rounded, dtype, dy, test_device());
  CHECK_MESSAGE(actual.output.device() == test_device(), what, ": the output is elsewhere");
  check_close(values_of(actual.output), values_of(expected.output), tolerance, what,
              dtype == DType::bf16 ? test.bf16_terms : 0);
  for (size_t i = 0; i < actual.gradients.size(); ++i) {
    check_close(values_of(actual.gradients[i]), values_of(expected.gradients[i]), tolerance,
                what + ", gradient " + std::to_string(i),
                gradient_terms(rounded, dtype, i, shape.count(), actual.gradients[i].count()));
  }
  if (test_device() == kCpu) return check_thread_counts(rounded, dtype, dy, actual);
  const Evaluation again = evaluate(rounded, dtype, dy, test_device());
  CHECK_MESSAGE(same_bits(again.output, actual.output), what, ": other bits in a second run");
  for (size_t i = 0; i < actual.gradients.size(); ++i) {
    CHECK_MESSAGE(same_bits(again.gradients[i], actual.gradients[i]), what, ": other bits in gradient ", i,
                  " in a second run");
  }
}

}  // namespace

Device test_device() {
  static const Device device = [] {
    const char* name = std::getenv("ELWISE_TEST_DEVICE");
    return name != nullptr ? parse_device(name) : kCpu;
  }();
  return device;
}

std::vector<DType> test_dtypes() {
  return {DType::f64, DType::f32, DType::bf16};
}

Values values_of(const Tensor& tensor) {
  return cast(to(tensor.detach(), kCpu), DType::f64).to_vector<double>();
}

Tensor leaf(const Values& values, const Shape& shape, DType dtype, Device device) {
  return to(cast(from_vector(values, shape), dtype), device).detach().set_requires_grad();
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
  if (test_device() != kCpu) {
    for (const DType dtype : test_dtypes()) check_on_device(test, dtype);
    return;
  }
  check_on_device(test, DType::bf16);
  Shape shape;
  for (const DType dtype : {DType::f64, DType::f32}) {
    const Tensor output = evaluate(test, dtype, {}).output;
    shape = output.shape();
    check_values(test, dtype, output);
    Tensor dy;
    if (test.gradients) dy = uniform(shape);
    check_thread_counts(test, dtype, dy, evaluate(test, dtype, dy));
  }
  check_meta(test, shape);
  if (!test.gradients) return;
  check_jacobian(test, shape.count());
  const OpTest rounded = rounded_to(DType::f32, test);
  const Tensor dy = output_gradient(shape, DType::f32);
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
