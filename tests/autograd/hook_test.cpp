#include <doctest/doctest.h>

#include <algorithm>

#include "autograd/checkpoint.h"
#include "ops/elementwise.h"
#include "ops/norm.h"
#include "ops/reduce.h"
#include "tests/support/op_test.h"

namespace elwise {
namespace {

using testing::check_error;
using testing::leaf;
using testing::Values;
using testing::values_of;

/// A hook that appends each gradient it is given to `seen`.
auto watch(std::vector<Values>& seen) {
  return [&seen](const Tensor& gradient) {
    seen.push_back(values_of(gradient));
    return Tensor();
  };
}

TEST_CASE("a hook on a leaf runs once with the final gradient") {
  const Tensor x = leaf({3}, {1});
  std::vector<Values> seen;
  x.register_hook(watch(seen));
  add(mul(x, x), add(x, mul(x, 2))).backward();
  CHECK(seen == std::vector<Values>{{9}});
  CHECK(values_of(x.grad()) == Values{9});
  mul(x, 4).backward();  // the gradient of this backward, not the sum of both
  CHECK(seen == std::vector<Values>{{9}, {4}});
  CHECK(values_of(x.grad()) == Values{13});
}

TEST_CASE("a hook on a result runs once with the final gradient") {
  const Tensor x = leaf({3}, {1});
  const Tensor y = mul(x, 2);
  std::vector<Values> seen;
  y.register_hook(watch(seen));
  add(mul(y, y), add(y, mul(y, 2))).backward();
  CHECK(seen == std::vector<Values>{{15}});
  CHECK(values_of(x.grad()) == Values{30});
}

TEST_CASE("what a hook returns replaces the gradient, and the next hook sees it") {
  const auto twice = [](const Tensor& gradient) { return mul(gradient, 2); };
  std::vector<Values> seen;
  const Tensor x = leaf({3}, {1});
  x.register_hook(twice);
  x.register_hook(watch(seen));
  const Tensor y = mul(x, 5);
  y.register_hook(twice);
  y.register_hook(twice);
  y.register_hook(watch(seen));
  y.backward();
  CHECK(seen == std::vector<Values>{{4}, {40}});
  CHECK(values_of(x.grad()) == Values{40});
}

TEST_CASE("the output of backward itself may have hooks") {
  const Tensor x = leaf({3}, {1});
  std::vector<Values> seen;
  x.register_hook(watch(seen));
  x.backward(from_vector<double>({7}, {1}));
  const Tensor y = mul(x, 2);
  y.register_hook(watch(seen));
  y.backward();
  CHECK(seen == std::vector<Values>{{7}, {1}, {2}});
}

TEST_CASE("a gradient that a hook keeps does not change afterwards") {
  const Tensor x = leaf({3}, {1});
  std::vector<Tensor> kept;
  const auto keep = [&](const Tensor& gradient) {
    kept.push_back(gradient);
    return Tensor();
  };
  x.register_hook(keep);
  const Tensor y = mul(x, 2), z = mul(y, 3);
  z.register_hook(keep);
  y.register_hook(keep);
  add(z, add(y, x)).backward();
  mul(x, 100).backward();
  REQUIRE(kept.size() == 4);
  CHECK(values_of(kept[0]) == Values{1});
  CHECK(values_of(kept[1]) == Values{4});
  CHECK(values_of(kept[2]) == Values{9});
  CHECK(values_of(kept[3]) == Values{100});
  CHECK(values_of(x.grad()) == Values{109});
}

TEST_CASE("hooks of an op with several outputs run for those that got a gradient") {
  const Tensor x = leaf({1, 2}, {1, 2}), residual = leaf({3, 4}, {1, 2});
  const auto [normalized, total] = add_layer_norm(x, residual, {}, {});
  std::vector<Values> of_normalized, of_total;
  normalized.register_hook(watch(of_normalized));
  total.register_hook(watch(of_total));
  sum(total).backward();
  CHECK(of_normalized.empty());
  CHECK(of_total == std::vector<Values>{{1, 1}});
}

TEST_CASE("a hook needs a tensor that requires its gradient") {
  const Tensor x = from_vector<double>({1}, {1});
  check_error([&] { x.register_hook([](const Tensor&) { return Tensor(); }); },
              "register_hook: expected a tensor that requires its gradient");
}

/// A hook that appends each leaf's gradient to `seen`, and clears it.
auto take(std::vector<Values>& seen) {
  return [&seen](const Tensor& leaf) {
    seen.push_back(values_of(leaf.grad()));
    leaf.set_grad({});
  };
}

TEST_CASE("a complete gradient's hook runs once in each backward, as early as can be") {
  const Tensor early = leaf({2}, {1}), late = leaf({3}, {1}), unused = leaf({4}, {1});
  std::vector<Values> seen;
  for (const Tensor& each : {early, late, unused}) each.set_complete_gradient_hook(take(seen));
  for (int run = 0; run < 2; ++run) {
    const Tensor first = mul(late, 5), second = mul(first, late);
    Values of_late_so_far;
    second.register_hook([&](const Tensor&) {
      of_late_so_far = seen.back();
      return Tensor();
    });
    seen.clear();
    mul(mul(second, early), early).backward();  // 5 late^2 early^2
    CHECK(of_late_so_far == Values{180});       // early's, as its last use is above `second`
    CHECK(seen == std::vector<Values>{{180}, {120}});
    CHECK_FALSE(late.grad().defined());
  }
  late.set_complete_gradient_hook({});
  mul(late, 7).backward();
  CHECK(seen.size() == 2);
  CHECK(values_of(late.grad()) == Values{7});
}

TEST_CASE("a complete gradient's hook sees what gradient hooks made, and earlier gradients that are left") {
  const Tensor x = leaf({3}, {1});
  x.set_grad(from_vector<double>({100}, {1}));
  x.register_hook([](const Tensor& gradient) { return mul(gradient, 2); });
  std::vector<Values> seen;
  x.set_complete_gradient_hook(take(seen));
  mul(x, x).backward();
  x.backward(from_vector<double>({7}, {1}));
  CHECK(seen == std::vector<Values>{{112}, {14}});
}

TEST_CASE("a complete gradient's hook waits for checkpoints, whose leaves no edge names") {
  const Tensor x = leaf({2}, {1}), inner = leaf({3}, {1});
  std::vector<Values> seen;
  for (const Tensor& each : {x, inner}) each.set_complete_gradient_hook(take(seen));
  const auto block = [&](const std::vector<Tensor>& inputs) { return mul(inputs[0], mul(inner, inner)); };
  const Tensor y = checkpoint(block, {checkpoint(block, {x})});  // x inner^4
  mul(y, inner).backward();
  std::ranges::sort(seen);
  CHECK(seen == std::vector<Values>{{243}, {810}});
}

TEST_CASE("a complete gradient's hook needs a leaf that has none") {
  const Tensor x = leaf({1}, {1});
  std::vector<Values> seen;
  x.set_complete_gradient_hook(take(seen));
  check_error([&] { x.set_complete_gradient_hook(take(seen)); },
              "set_complete_gradient_hook: expected a leaf without one, such as another optimizer's");
  check_error([&] { mul(x, 2).set_complete_gradient_hook(take(seen)); },
              "set_complete_gradient_hook: expected a leaf, got the result of a recorded op");
}

TEST_CASE("a replacement of another shape or dtype is an error") {
  for (const bool on_leaf : {true, false}) {
    const Tensor x = leaf({1, 2}, {2});
    const Tensor y = mul(x, 2);
    const Tensor& hooked = on_leaf ? x : y;
    hooked.register_hook([](const Tensor&) { return zeros({3}, {.dtype = DType::f64}); });
    check_error([&] { sum(y).backward(); }, "hook: expected a gradient of [2] f64, got [3] f64");
  }
}

}  // namespace
}  // namespace elwise
