#include "autograd/checkpoint.h"

#include "autograd/grad_mode.h"
#include "autograd/gradcheck.h"
#include "core/storage.h"
#include "ops/dropout.h"
#include "ops/elementwise.h"
#include "ops/reduce.h"
#include "tests/support/op_test.h"

namespace elwise {
namespace {

using testing::check_error;
using testing::leaf;
using testing::uniform;
using testing::Values;
using testing::values_of;
using Inputs = std::vector<Tensor>;
using Function = std::function<Tensor(const Inputs&)>;

/// function(inputs), with or without a checkpoint.
Tensor call(bool checkpointed, const Function& function, const Inputs& inputs) {
  return checkpointed ? checkpoint(function, inputs) : function(inputs);
}

TEST_CASE("a checkpoint gives the same values, gradients and random numbers") {
  const Values x_values = values_of(uniform({4, 33})), w_values = values_of(uniform({33}));
  struct Result {
    Values output, dx, dw;
    uint64_t random_offset;
    bool operator==(const Result&) const = default;
  };
  const auto run = [&](bool checkpointed) {
    manual_seed(11);
    const Tensor x = leaf(x_values, {4, 33}), w = leaf(w_values, {33});
    const Function block = [](const Inputs& inputs) {
      return dropout(tanh(mul(dropout(inputs[0], 0.3), inputs[1])), 0.5);
    };
    const Tensor first = call(checkpointed, block, {x, w}), second = call(checkpointed, block, {first, w});
    const Tensor output = dropout(second, 0.5);
    sum(mul(output, output)).backward();
    return Result{values_of(output), values_of(x.grad()), values_of(w.grad()),
                  default_generator().state().offset};
  };
  CHECK(run(true) == run(false));
}

TEST_CASE("a checkpoint passes gradcheck in every input") {
  const Function function = [](const Inputs& inputs) {
    return checkpoint([](const Inputs& in) { return mul(tanh(in[0]), add(in[1], in[0])); },
                      {mul(inputs[0], 2), inputs[1]});
  };
  const GradcheckResult result =
      gradcheck(function, {uniform({3, 2}).set_requires_grad(), uniform({2}).set_requires_grad()});
  CHECK_MESSAGE(result.passed, result.message);
}

TEST_CASE("checkpoints take less memory than keeping everything") {
  constexpr int64_t kCount = 1 << 14, kBytes = kCount * 4;
  constexpr int kSegments = 6, kDepth = 6;
  const auto peak = [&](bool checkpointed) {
    const Tensor x = full({kCount}, 0.5).set_requires_grad();
    const Function segment = [](const Inputs& inputs) {
      Tensor y = inputs[0];
      for (int i = 0; i < kDepth; ++i) y = tanh(y);
      return y;
    };
    const int64_t before = memory_stats(kCpu).total.now;
    reset_memory_peak(kCpu);
    Tensor y = x;
    for (int i = 0; i < kSegments; ++i) y = call(checkpointed, segment, {y});
    sum(y).backward();
    return memory_stats(kCpu).total.peak - before;
  };
  CHECK(peak(false) >= kSegments * kDepth * kBytes);
  CHECK(peak(true) < (kSegments + kDepth + 4) * kBytes);  // inputs, one segment, gradients
}

TEST_CASE("parameters that the function captures get their gradients") {
  for (const bool input_requires_grad : {true, false}) {
    Tensor x = leaf({1, 2}, {2});
    x.set_requires_grad(input_requires_grad);
    const Tensor w = leaf({3, 4}, {2});
    const Tensor y = checkpoint([w](const Inputs& inputs) { return mul(mul(inputs[0], w), w); }, {x});
    CHECK(y.requires_grad());
    sum(y).backward();
    CHECK(values_of(w.grad()) == Values{6, 16});
    CHECK(x.grad().defined() == input_requires_grad);
    if (input_requires_grad) CHECK(values_of(x.grad()) == Values{9, 16});
  }
}

TEST_CASE("a checkpoint in which nothing requires a gradient runs backward to nothing") {
  const Tensor x = from_vector<double>({1, 2}, {2});
  const Tensor y = checkpoint([](const Inputs& inputs) { return exp(inputs[0]); }, {x});
  sum(y).backward();
  CHECK_FALSE(x.grad().defined());
}

TEST_CASE("inputs may be undefined, repeated, of other dtypes and returned") {
  const Tensor x = leaf({1, 2}, {2}), mask = from_vector<bool>({true, false}, {2});
  const Function function = [](const Inputs& inputs) {
    CHECK_FALSE(inputs[1].defined());
    return mul(masked_fill(inputs[0], inputs[3], 0), inputs[2]);
  };
  sum(checkpoint(function, {x, Tensor(), x, mask})).backward();
  CHECK(values_of(x.grad()) == Values{0, 4});
  x.set_grad({});
  sum(checkpoint([](const Inputs& inputs) { return inputs[0]; }, {x})).backward();
  CHECK(values_of(x.grad()) == Values{1, 1});
}

TEST_CASE("checkpoints nest") {
  const Tensor x = leaf({0.5, 2}, {2}), w = leaf({3, 4}, {2});
  const auto run = [&](bool checkpointed) {
    x.set_grad({});
    w.set_grad({});
    manual_seed(3);
    const Function inner = [w](const Inputs& inputs) { return dropout(tanh(mul(inputs[0], w)), 0.5); };
    const Function outer = [&inner, checkpointed](const Inputs& inputs) {
      return call(checkpointed, inner, {call(checkpointed, inner, inputs)});
    };
    sum(call(checkpointed, outer, {x})).backward();
    return std::pair(values_of(x.grad()), values_of(w.grad()));
  };
  CHECK(run(true) == run(false));
}

TEST_CASE("the function runs once more in backward, and once without recording") {
  int calls = 0;
  const Function counted = [&](const Inputs& inputs) {
    ++calls;
    return mul(inputs[0], 2);
  };
  const Tensor x = leaf({1}, {1});
  {
    const NoGradGuard guard;
    CHECK_FALSE(checkpoint(counted, {x}).requires_grad());
  }
  CHECK(calls == 1);
  const Tensor y = checkpoint(counted, {x});
  CHECK(calls == 2);
  y.backward();
  CHECK(calls == 3);
}

TEST_CASE("an input that was changed in place is refused") {
  const Tensor x = leaf({1, 2}, {2});
  const Tensor loss = sum(checkpoint([](const Inputs& inputs) { return exp(inputs[0]); }, {x}));
  fill(x, 0);
  check_error(
      [&] { loss.backward(); },
      "checkpoint backward: a tensor of shape [2] that forward saved was changed in place since (version "
      "1, expected 0); clone it before changing it");
}

TEST_CASE("an error in the second run leaves the random generator where it was") {
  int calls = 0;
  const Tensor x = leaf({1, 2}, {2});
  const Tensor loss = sum(checkpoint(
      [&](const Inputs& inputs) {
        if (++calls == 2) fail("broken");
        return dropout(inputs[0], 0.5);
      },
      {x}));
  const RandomStream before = default_generator().state();
  check_error([&] { loss.backward(); }, "broken");
  CHECK(default_generator().state().offset == before.offset);
}

}  // namespace
}  // namespace elwise
