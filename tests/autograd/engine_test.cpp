#include "autograd/engine.h"

#include <thread>

#include "autograd/grad_mode.h"
#include "ops/elementwise.h"
#include "ops/norm.h"
#include "ops/reduce.h"
#include "tests/support/op_test.h"

namespace elwise {
namespace {

using testing::check_close;
using testing::check_error;
using testing::kF64Tolerance;
using testing::leaf;
using testing::uniform;
using testing::Values;
using testing::values_of;

TEST_CASE("a diamond adds up what comes from both sides") {
  const Tensor x = leaf({3}, {1});
  const Tensor a = mul(x, 2);
  mul(a, add(a, x)).backward();  // 6 x^2
  CHECK(values_of(x.grad()) == Values{36});
}

TEST_CASE("a tensor used twice by one op gets both gradients") {
  const Tensor x = leaf({3, -5}, {2});
  sum(mul(x, x)).backward();
  CHECK(values_of(x.grad()) == Values{6, -10});

  const Tensor y = leaf({3, -5}, {2});
  const Tensor doubled = mul(y, 2);
  sum(add(doubled, doubled)).backward();
  CHECK(values_of(y.grad()) == Values{4, 4});
}

TEST_CASE("a leaf used many times gets the sum") {
  const Tensor x = leaf({1, 2}, {2});
  Tensor y = mul(x, 0);
  for (int i = 1; i <= 100; ++i) y = add(y, mul(x, i));
  sum(y).backward();
  CHECK(values_of(x.grad()) == Values{5050, 5050});
}

TEST_CASE("nodes run after all that depend on them, in whatever order they were used") {
  const Tensor x = leaf({2}, {1});
  const Tensor early = mul(x, x);                     // x^2
  const Tensor late = mul(mul(mul(early, 1), 1), 1);  // a longer way
  mul(early, mul(late, early)).backward();            // x^6
  CHECK(values_of(x.grad()) == Values{192});
}

TEST_CASE("gradients accumulate over calls of backward, in the buffer that grad() gave") {
  const Tensor x = leaf({1, 2}, {2});
  sum(mul(x, 3)).backward();
  const Tensor held = x.grad();
  sum(mul(x, x)).backward();
  CHECK(values_of(x.grad()) == Values{5, 7});
  CHECK(x.grad().is_same(held));
  x.set_grad({});
  CHECK_FALSE(x.grad().defined());
  sum(mul(x, 3)).backward();
  CHECK(values_of(x.grad()) == Values{3, 3});
  CHECK(values_of(held) == Values{5, 7});
}

TEST_CASE("one tensor returned as the gradient of two inputs is not changed for one of them") {
  // add returns its dy twice; a second use of `a` adds to the gradient of `a` alone, before or after.
  for (const bool leaves : {false, true}) {
    for (const bool other_first : {false, true}) {
      const Tensor x = leaf({1, 2}, {2}), y = leaf({3, 4}, {2});
      const Tensor a = leaves ? x : mul(x, 1), b = leaves ? y : mul(y, 1);
      Tensor other, both;
      if (other_first) other = mul(a, 10);
      both = add(a, b);
      if (!other_first) other = mul(a, 10);
      sum(add(mul(both, 5), other)).backward();
      CHECK(values_of(x.grad()) == Values{15, 15});
      CHECK(values_of(y.grad()) == Values{5, 5});
      CHECK(x.grad().data() != y.grad().data());
    }
  }
}

TEST_CASE("the gradient handed to backward stays the caller's") {
  const Tensor x = leaf({1, 2}, {2}), gradient = from_vector<double>({10, 20}, {2});
  x.backward(gradient);
  add(x, x).backward(gradient);
  CHECK(values_of(x.grad()) == Values{30, 60});
  CHECK(values_of(gradient) == Values{10, 20});
  fill(gradient, 0);
  CHECK(values_of(x.grad()) == Values{30, 60});
}

TEST_CASE("backward from several outputs runs what they share once") {
  const Tensor x = leaf({2}, {1});
  const Tensor shared = mul(x, x);
  const Tensor a = mul(shared, 3), b = mul(shared, shared);
  backward({a, b, a}, {from_vector<double>({10}, {1}), {}, {}});  // 10 * 6x + 4x^3 + 6x
  CHECK(values_of(x.grad()) == Values{164});
}

TEST_CASE("a leaf is its own gradient's end") {
  const Tensor x = leaf({7}, {1});
  x.backward();
  CHECK(values_of(x.grad()) == Values{1});
}

TEST_CASE("nothing is recorded under NoGradGuard, and recording comes back after it") {
  const Tensor x = leaf({2}, {1});
  CHECK(grad_enabled());
  {
    const NoGradGuard outer;
    CHECK_FALSE(grad_enabled());
    CHECK_FALSE(mul(x, x).requires_grad());
    {
      const GradModeGuard on(true);
      CHECK(mul(x, x).requires_grad());
    }
    CHECK_FALSE(grad_enabled());
    std::thread([] { CHECK(grad_enabled()); }).join();
  }
  CHECK(mul(x, x).requires_grad());
  try {
    const NoGradGuard guard;
    fail("left by an exception");
  } catch (const Error&) {
  }
  CHECK(grad_enabled());
}

TEST_CASE("backward runs without recording and leaves the mode as it was") {
  const Tensor x = leaf({2}, {1});
  const Tensor y = mul(x, x);
  bool recording = true;
  y.register_hook([&](const Tensor&) {
    recording = grad_enabled();
    return Tensor();
  });
  y.backward();
  CHECK_FALSE(recording);
  CHECK(grad_enabled());
  CHECK_FALSE(x.grad().requires_grad());
}

TEST_CASE("detach cuts the graph") {
  const Tensor x = leaf({3}, {1});
  const Tensor squared = mul(x, x);
  CHECK_FALSE(squared.detach().requires_grad());
  mul(x, squared.detach()).backward();
  CHECK(values_of(x.grad()) == Values{9});
}

TEST_CASE("what needs no gradient gets none") {
  const Tensor x = leaf({3}, {1}), constant = from_vector<double>({2}, {1});
  mul(x, constant).backward();
  CHECK(values_of(x.grad()) == Values{2});
  CHECK_FALSE(constant.grad().defined());
  CHECK_FALSE(mul(constant, constant).requires_grad());
  Tensor stopped = leaf({3}, {1});
  stopped.set_requires_grad(false);
  CHECK_FALSE(mul(stopped, 2).requires_grad());
}

TEST_CASE("backward checks the output and the gradient") {
  const Tensor x = leaf({1, 2}, {2});
  const std::string no_graph =
      "backward: expected an output that requires its gradient; it was computed from no leaf that does, or "
      "under NoGradGuard, or it is itself a gradient (which cannot be differentiated again)";
  check_error([&] { mul(x, 2).backward(); },
              "backward: expected a one-element output or a gradient for it, got [2]");
  check_error([&] { mul(x, 2).backward(zeros({3}, x.options())); },
              "backward: expected a gradient of [2] f64, got [3] f64");
  check_error([&] { mul(x, 2).backward(zeros({2})); },
              "backward: expected a gradient of [2] f64, got [2] f32");
  check_error([&] { sum(x.detach()).backward(); }, no_graph);
  check_error([&] { backward({Tensor()}, {Tensor()}); }, no_graph);
  sum(mul(x, x)).backward();
  check_error([&] { sum(x.grad()).backward(); }, no_graph);
  check_error(
      [&] {
        backward({x, x}, {x.detach()});
      },
      "backward: expected one gradient for each of 2 outputs, got 1");
}

TEST_CASE("a graph runs backward once") {
  const Tensor x = leaf({2}, {1});
  const Tensor squared = mul(x, x);
  const Tensor y = exp(squared), z = neg(squared);
  y.backward();
  check_error(
      [&] { y.backward(); },
      "backward: the graph through exp was freed by an earlier backward(); compute the forward pass again");
  check_error(
      [&] { z.backward(); },
      "backward: the graph through mul was freed by an earlier backward(); compute the forward pass again");
}

TEST_CASE("gradients are asked of and given to leaves only") {
  Tensor x = leaf({2, 3}, {2});
  Tensor y = mul(x, x);
  check_error([&] { y.set_requires_grad(); },
              "set_requires_grad: expected a leaf, got the result of a recorded op; use detach()");
  Tensor index = arange(3);
  check_error([&] { index.set_requires_grad(); }, "set_requires_grad: expected a floating dtype, got i64");
  index.set_requires_grad(false);
  check_error([&] { x.set_grad(zeros({3}, x.options())); }, "set_grad: expected [2] f64, got [3] f64");
  check_error([&] { x.set_grad(zeros({2})); }, "set_grad: expected [2] f64, got [2] f32");
  sum(y).backward();
  CHECK_FALSE(y.grad().defined());
}

TEST_CASE("an op with several outputs takes an undefined gradient for those that nothing uses") {
  const Values x_values{1, 2, 4, -3, 0, 5}, r_values{0.5, -1, 2, 1, 1, 3};
  const Tensor weights = uniform({2, 3});
  for (const bool use_normalized : {false, true}) {
    for (const bool use_sum : {false, true}) {
      if (!use_normalized && !use_sum) continue;
      const auto loss_of = [&](const Tensor& normalized, const Tensor& total) {
        Tensor loss = zeros({}, total.options());
        if (use_normalized) loss = add(loss, sum(mul(normalized, weights)));
        return use_sum ? add(loss, sum(mul(total, total))) : loss;
      };
      const auto leaves = [&] {
        return std::vector{leaf(x_values, {2, 3}), leaf(r_values, {2, 3}), leaf({1, 2, 3}, {3}),
                           leaf({4, 5, 6}, {3})};
      };
      const std::vector<Tensor> fused = leaves(), composed = leaves();
      const AddLayerNormResult result = add_layer_norm(fused[0], fused[1], fused[2], fused[3]);
      loss_of(result.normalized, result.sum).backward();
      const Tensor total = add(composed[0], composed[1]);
      loss_of(layer_norm(total, composed[2], composed[3]), total).backward();
      for (size_t i = 0; i < fused.size(); ++i) {
        const Tensor expected = composed[i].grad(), actual = fused[i].grad();
        REQUIRE(actual.defined() == expected.defined());
        if (expected.defined()) {
          check_close(values_of(actual), values_of(expected), kF64Tolerance, "input " + std::to_string(i));
        }
      }
    }
  }
}

TEST_CASE("backward runs on meta") {
  const Tensor x = empty({1000, 1000}, {.device = kMeta}).detach().set_requires_grad();
  sum(mul(x, x)).backward();
  CHECK(x.grad().shape() == x.shape());
  CHECK(x.grad().device() == kMeta);
}

constexpr int kLongChain = 200'000;

TEST_CASE("a long chain is walked and freed without recursion") {
  const Tensor x = leaf({1}, {1});
  Tensor y = x;
  for (int i = 0; i < kLongChain; ++i) y = add(y, 1);
  y.backward();
  CHECK(values_of(x.grad()) == Values{1});
  CHECK(values_of(y) == Values{1.0 + kLongChain});
}

TEST_CASE("a long chain that never ran backward is freed without recursion") {
  const Tensor x = leaf({1}, {1});
  Tensor chain = x, ladder = x;
  for (int i = 0; i < kLongChain; ++i) chain = add(chain, 1);
  for (int i = 0; i < kLongChain / 4; ++i) ladder = sub(add(ladder, ladder), ladder);
  chain = {};
  ladder = {};
  CHECK(x.is_unique());  // no edge holds it any more
}

}  // namespace
}  // namespace elwise
