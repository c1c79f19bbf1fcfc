#include "autograd/gradcheck.h"

#include <cmath>

#include "autograd/node.h"
#include "ops/elementwise.h"
#include "ops/reduce.h"
#include "tests/support/op_test.h"

namespace elwise {
namespace {

using testing::check_error;
using testing::leaf;
using testing::Values;
using testing::values_of;
using Inputs = std::vector<Tensor>;

/// 3x, with a gradient of 3 everywhere but `wrong` at element 2.
Tensor triple(const Tensor& x, double wrong) {
  return record("triple", {x}, mul(x.detach(), 3), [wrong](const BackwardContext& context) {
    const Tensor dx = mul(context.gradient(), 3);
    dx.data<double>()[2] *= wrong / 3;
    return std::vector{dx};
  });
}

TEST_CASE("right gradients pass, with respect to every input") {
  const Inputs inputs{leaf({0.5, -1, 2}, {3}), leaf({1, 2, 3, 4, 5, 6}, {2, 3})};
  const GradcheckResult result = gradcheck([](const Inputs& in) { return mul(tanh(in[0]), in[1]); }, inputs);
  CHECK(result);
  CHECK(result.passed);
  CHECK(result.worst < 0);
  CHECK_FALSE(inputs[0].grad().defined());  // the inputs themselves are left alone
  CHECK(values_of(inputs[0]) == Values{0.5, -1, 2});
}

TEST_CASE("a wrong gradient fails and the message names the element") {
  const GradcheckResult result = gradcheck([](const Inputs& in) { return triple(mul(in[1], 1), 5); },
                                           {leaf({1, 2}, {2}), leaf({1, 2, 3, 4}, {2, 2})});
  CHECK_FALSE(result);
  CHECK(result.worst == doctest::Approx(2).epsilon(1e-3));
  CHECK_MESSAGE(result.message.starts_with(
                    "gradcheck: worst at input 1 [2, 2] element 2, output element 2: analytic 5, numeric 3"),
                result.message);
}

TEST_CASE("a gradient that is wrong by little more than the tolerance fails") {
  const auto passes = [](double factor) {
    return gradcheck([factor](const Inputs& in) { return triple(in[0], 3 * factor); }, {leaf({1, 2, 3}, {3})})
        .passed;
  };
  CHECK(passes(1));
  CHECK(passes(1 + 1e-7));
  CHECK_FALSE(passes(1 + 1e-5));
}

TEST_CASE("a gradient that is NaN fails") {
  const GradcheckResult result =
      gradcheck([](const Inputs& in) { return triple(in[0], NAN); }, {leaf({1, 2, 3}, {3})});
  CHECK_FALSE(result);
  CHECK(result.message.find("element 2, output element 0: analytic nan") != std::string::npos);
}

TEST_CASE("a function that is NaN fails") {
  CHECK_FALSE(gradcheck([](const Inputs& in) { return log(in[0]); }, {leaf({-1}, {1})}));
}

TEST_CASE("a gradient that is missing fails") {
  CHECK_FALSE(gradcheck([](const Inputs& in) { return exp(in[0].detach()); }, {leaf({1}, {1})}));
}

TEST_CASE("an input that the result does not depend on has the gradient 0") {
  CHECK(gradcheck([](const Inputs& in) { return exp(in[0]); }, {leaf({1}, {1}), leaf({1, 2}, {2})}));
  CHECK(gradcheck([](const Inputs& in) { return in[0]; }, {leaf({1, 2}, {2})}));
}

TEST_CASE("inputs that require no gradient are passed on as they are") {
  const Inputs inputs{leaf({1, 2}, {2}), Tensor(), from_vector<bool>({true, false}, {2}),
                      from_vector<double>({3, 4}, {2})};
  CHECK(gradcheck(
      [](const Inputs& in) {
        CHECK_FALSE(in[1].defined());
        return where(in[2], mul(in[0], in[3]), in[0]);
      },
      inputs));
}

TEST_CASE("nothing to check is refused") {
  check_error([] { gradcheck([](const Inputs& in) { return exp(in[0]); }, {from_vector<double>({1}, {1})}); },
              "gradcheck: expected an input that requires its gradient, got none");
}

TEST_CASE("f32 is refused: it is too coarse to check against") {
  check_error([] { gradcheck([](const Inputs& in) { return exp(in[0]); }, {leaf({1}, {1}, DType::f32)}); },
              "gradcheck: expected inputs of f64 on cpu, got f32 on cpu");
  check_error(
      [] {
        gradcheck([](const Inputs& in) { return exp(in[0]); },
                  {empty({1}, {.dtype = DType::f64, .device = kMeta}).detach().set_requires_grad()});
      },
      "gradcheck: expected inputs of f64 on cpu, got f64 on meta");
  check_error([] { gradcheck([](const Inputs& in) { return cast(in[0], DType::f32); }, {leaf({1}, {1})}); },
              "gradcheck: expected the function to return f64, got f32");
}

}  // namespace
}  // namespace elwise
