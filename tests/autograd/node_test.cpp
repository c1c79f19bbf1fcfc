#include "autograd/node.h"

#include "autograd/gradcheck.h"
#include "ops/elementwise.h"
#include "ops/reduce.h"
#include "ops/view.h"
#include "tests/support/op_test.h"

namespace elwise {
namespace {

using testing::check_error;
using testing::leaf;
using testing::uniform;
using testing::Values;
using testing::values_of;

/// a^2 b, as a user of the library writes an op of their own.
Tensor square_times(const Tensor& a, const Tensor& b) {
  const auto each = [](const Tensor& like, auto function) {
    const Tensor result = empty(like.shape(), like.options());
    for (int64_t i = 0; i < like.count(); ++i) result.data<double>()[i] = function(i);
    return result;
  };
  const double *x = a.data<double>(), *y = b.data<double>();
  const Tensor output = each(a, [=](int64_t i) { return x[i] * x[i] * y[i]; });
  return record("square_times", {a, b}, output,
                [each, saved_a = SavedTensor(a), saved_b = SavedTensor(b)](const BackwardContext& context) {
                  const double *u = saved_a.get().data<double>(), *v = saved_b.get().data<double>();
                  const double* dy = context.gradient().data<double>();
                  const Tensor& like = saved_a.get();
                  std::vector<Tensor> gradients(2);
                  if (context.needs(0))
                    gradients[0] = each(like, [=](int64_t i) { return 2 * u[i] * v[i] * dy[i]; });
                  if (context.needs(1))
                    gradients[1] = each(like, [=](int64_t i) { return u[i] * u[i] * dy[i]; });
                  return gradients;
                });
}

/// x, with whatever `backward` says.
Tensor identity(const Tensor& x, BackwardFunction backward) {
  return record("identity", {x}, clone(x).detach(), std::move(backward));
}

TEST_CASE("an op defined outside the library takes part in autograd") {
  const Tensor a = uniform({5}).set_requires_grad(), b = uniform({5}).set_requires_grad();
  const auto function = [](const std::vector<Tensor>& inputs) {
    return mul(square_times(mul(inputs[0], 3), inputs[1]), inputs[1]);
  };
  const GradcheckResult result = gradcheck(function, {a, b});
  CHECK_MESSAGE(result.passed, result.message);
}

TEST_CASE("needs() tells which gradients are wanted") {
  const Tensor a = leaf({1, 2}, {2}), b = from_vector<double>({3, 4}, {2});
  sum(square_times(a, b)).backward();
  CHECK(values_of(a.grad()) == Values{6, 16});
  CHECK_FALSE(b.grad().defined());
}

TEST_CASE("an op on inputs that require no gradient is not recorded") {
  const Tensor a = from_vector<double>({1, 2}, {2});
  CHECK_FALSE(square_times(a, a).requires_grad());
  CHECK_FALSE(needs_gradient({a, Tensor()}));
  CHECK(needs_gradient({a, Tensor(), leaf({1}, {1})}));
}

TEST_CASE("an undefined gradient stops there") {
  const Tensor x = leaf({1, 2}, {2});
  sum(identity(x, [](const BackwardContext&) { return std::vector<Tensor>(1); })).backward();
  CHECK_FALSE(x.grad().defined());
}

TEST_CASE("gradients of the wrong number, shape or dtype are errors that name the op") {
  const Tensor x = leaf({1, 2}, {2});
  check_error(
      [&] { sum(identity(x, [](const BackwardContext&) { return std::vector<Tensor>(2); })).backward(); },
      "identity backward: expected 1 gradients, got 2");
  check_error(
      [&] {
        sum(identity(x, [](const BackwardContext& context) {
          return std::vector{zeros({3}, context.gradient().options())};
        })).backward();
      },
      "identity backward: expected a gradient of [2] f64, got [3] f64");
  check_error(
      [&] {
        sum(identity(x, [](const BackwardContext& context) {
          return std::vector{cast(context.gradient(), DType::f32)};
        })).backward();
      },
      "identity backward: expected a gradient of [2] f64, got [2] f32");
}

/// Counts how often the op below was given a sum to add to.
int sums_given = 0;

/// x itself, by an op that adds its gradient to what there is already, where it may.
Tensor adding_identity(const Tensor& x) {
  return identity(x, [](const BackwardContext& context) {
    const Tensor sum = context.sum_so_far(0);
    if (!sum.defined()) return std::vector{context.gradient()};
    ++sums_given;
    accumulate(sum, context.gradient());
    return std::vector{sum};
  });
}

TEST_CASE("an op may add its gradient to the sum so far of an inner tensor and of a leaf") {
  sums_given = 0;
  const Tensor x = leaf({1, 2}, {2});
  const Tensor inner = mul(x, 3);
  const Tensor first = adding_identity(inner);
  sum(add(mul(first, 5), mul(inner, 2))).backward();  // mul(inner, 2) is made later and goes first
  CHECK(sums_given == 1);
  CHECK(values_of(x.grad()) == Values{21, 21});

  const Tensor held = x.grad();
  sum(mul(adding_identity(x), 4)).backward();
  CHECK(sums_given == 2);
  CHECK(values_of(held) == Values{25, 25});
  CHECK(x.grad().is_same(held));
}

TEST_CASE(
    "no sum is given where there is none, where another uses its buffer, and where a hook waits for it") {
  sums_given = 0;
  const Tensor x = leaf({1, 2}, {2});
  sum(adding_identity(x)).backward();
  CHECK(values_of(x.grad()) == Values{1, 1});

  const Tensor y = leaf({1, 2}, {2}), inner = mul(y, 3);
  const Tensor shared = add(inner, adding_identity(inner));  // one buffer is the gradient of both
  sum(shared).backward();
  CHECK(values_of(y.grad()) == Values{6, 6});

  const Tensor hooked = leaf({1, 2}, {2});
  hooked.set_grad(from_vector<double>({10, 10}, {2}));
  hooked.register_hook([](const Tensor& gradient) { return mul(gradient, 2); });
  sum(adding_identity(hooked)).backward();
  CHECK(values_of(hooked.grad()) == Values{12, 12});
  CHECK(sums_given == 0);
}

TEST_CASE("a gradient that is taken is the op's alone, unless the caller, a hook or another op has it") {
  std::vector<bool> alone;
  const auto pass = [&](const Tensor& x) {
    return record("pass", {x}, clone(x).detach(), [&alone](const BackwardContext& context) {
      const Tensor dy = context.take_gradient();
      CHECK(!context.gradient().defined());
      alone.push_back(dy.is_unique());
      return std::vector{dy};
    });
  };
  const Tensor x = leaf({1, 2}, {2});
  pass(mul(pass(x), 2))
      .backward(ones({2}, x.options()));  // the caller's, moved or not: what it holds is seen
  CHECK(values_of(x.grad()) == Values{2, 2});
  CHECK(alone == std::vector{false, true});
  alone.clear();
  const Tensor y = pass(x);
  Tensor kept;
  y.register_hook([&](const Tensor& gradient) {
    kept = gradient;
    return Tensor();
  });
  mul(y, 2).backward(ones({2}, x.options()));
  CHECK(alone == std::vector{false});
  alone.clear();
  const Tensor a = pass(x), b = pass(x);
  mul(add(a, b), 2).backward(ones({2}, x.options()));  // add gives both the same tensor
  CHECK(alone == std::vector{false, true});
  CHECK(values_of(x.grad()) == Values{8, 8});
}

TEST_CASE("an op that was given a sum may leave it alone") {
  const Tensor x = leaf({1, 2}, {2}), inner = mul(x, 3);
  const Tensor y = identity(inner, [](const BackwardContext& context) {
    CHECK(context.sum_so_far(0).defined());
    return std::vector{context.gradient()};
  });
  sum(add(mul(y, 5), mul(inner, 2))).backward();
  CHECK(values_of(x.grad()) == Values{21, 21});
}

TEST_CASE("what a backward function throws reaches the caller of backward, and the next backward works") {
  const Tensor x = leaf({1, 2}, {2});
  check_error(
      [&] {
        sum(mul(identity(x, [](const BackwardContext&) -> std::vector<Tensor> { fail("broken"); }), 2))
            .backward();
      },
      "broken");
  CHECK_FALSE(x.grad().defined());
  sum(mul(x, 2)).backward();
  CHECK(values_of(x.grad()) == Values{2, 2});
}

TEST_CASE("a saved tensor that was changed in place is refused by name") {
  const std::string changed =
      " backward: a tensor of shape [2] that forward saved was changed in place since (version 1, expected "
      "0); "
      "clone it before changing it";
  {
    const Tensor x = leaf({1, 2}, {2}), w = from_vector<double>({3, 4}, {2});
    const Tensor loss = sum(mul(x, w));
    fill(w, 5);
    check_error([&] { loss.backward(); }, "mul" + changed);
  }
  {
    const Tensor x = leaf({1, 2}, {2});
    const Tensor y = exp(x), loss = sum(y);
    Tensor view = y.detach();  // the change is seen through any view
    view.copy_from(x.detach());
    check_error([&] { loss.backward(); }, "exp" + changed);
  }
  {
    const Tensor x = leaf({1, 2}, {2}), w = from_vector<double>({3, 4}, {2});
    const Tensor loss = sum(mul(x, clone(w)));
    fill(w, 5);
    loss.backward();
    CHECK(values_of(x.grad()) == Values{3, 4});
  }
}

TEST_CASE("a tensor that no op saved may change in place") {
  const Tensor x = leaf({1, 2}, {2}), w = from_vector<double>({3, 4}, {2});
  const Tensor loss = sum(add(x, w));
  fill(w, 5);
  loss.backward();
  CHECK(values_of(x.grad()) == Values{1, 1});
  fill(x, 0);  // an optimizer's step
  sum(mul(x, x)).backward();
  CHECK(values_of(x.grad()) == Values{1, 1});
}

TEST_CASE("a saved tensor keeps the elements and not the graph") {
  const Tensor x = leaf({1, 2}, {2});
  const Tensor y = exp(x);
  const SavedTensor saved(y);
  CHECK_FALSE(saved.get().requires_grad());
  CHECK(saved.get().data() == y.data());
  CHECK_FALSE(SavedTensor().get().defined());
  CHECK_FALSE(SavedTensor(Tensor()).get().defined());
}

}  // namespace
}  // namespace elwise
