#include <doctest/doctest.h>

#include "autograd/grad_mode.h"
#include "core/storage.h"
#include "ops/elementwise.h"
#include "ops/reduce.h"
#include "tests/support/op_test.h"

namespace elwise {
namespace {

constexpr int64_t kCount = 1 << 14, kBytes = kCount * 4;
constexpr int kDepth = 20;

int64_t in_use() {
  return memory_stats(kCpu).total.now;
}

Tensor large_leaf() {
  return full({kCount}, 0.5).set_requires_grad();
}

TEST_CASE("forward keeps what backward needs, and under NoGradGuard nothing") {
  const Tensor x = large_leaf();
  const int64_t before = in_use();
  const auto forward = [&] {
    Tensor y = x;
    for (int i = 0; i < kDepth; ++i) y = tanh(y);
    return sum(y);
  };
  {
    const Tensor loss = forward();
    CHECK(in_use() == before + kDepth * kBytes + 64);
  }
  CHECK(in_use() == before);
  const NoGradGuard guard;
  reset_memory_peak(kCpu);
  const Tensor loss = forward();
  CHECK(in_use() == before + 64);
  CHECK(memory_stats(kCpu).total.peak == before + 2 * kBytes);
}

TEST_CASE("backward frees saved tensors as it passes them") {
  const Tensor x = large_leaf();
  const int64_t before = in_use();
  Tensor y = tanh(x);
  int64_t at_the_end = 0;
  y.register_hook([&](const Tensor&) {
    at_the_end = in_use();
    return Tensor();
  });
  for (int i = 1; i < kDepth; ++i) y = tanh(y);
  const Tensor loss = sum(y);
  y = {};
  const int64_t forward_end = in_use();
  CHECK(forward_end >= before + kDepth * kBytes);
  reset_memory_peak(kCpu);
  loss.backward();
  CHECK(at_the_end <= before + 2 * kBytes + 64);  // the first tanh's output and the gradient
  CHECK(memory_stats(kCpu).total.peak <= forward_end + 2 * kBytes);
  CHECK(in_use() == before + kBytes + 64);  // x's gradient and the loss
}

TEST_CASE("the gradient of a leaf is counted under gradients, once, until it is cleared") {
  const Tensor x = large_leaf(), y = large_leaf();
  const MemoryStats before = memory_stats(kCpu);
  const auto grown = [&](MemoryTag tag) { return memory_stats(kCpu)[tag].now - before[tag].now; };
  sum(add(x, y)).backward();  // one buffer arrives for both
  CHECK(grown(MemoryTag::gradients) == 2 * kBytes);
  CHECK(grown(MemoryTag::activations) == 0);
  sum(mul(x, y)).backward();
  CHECK(grown(MemoryTag::gradients) == 2 * kBytes);
  CHECK(grown(MemoryTag::activations) == 0);
  x.set_grad({});
  CHECK(grown(MemoryTag::gradients) == kBytes);
  y.set_grad({});
  CHECK(grown(MemoryTag::gradients) == 0);
}

}  // namespace
}  // namespace elwise
