#include <functional>

#include "ops/elementwise.h"
#include "ops/loss.h"
#include "ops/norm.h"
#include "ops/softmax.h"
#include "ops/softmax_attention.h"
#include "ops/view.h"
#include "tests/support/op_test.h"

// Results that are larger than the caches are written past them, by other stores than the same elements in a
// smaller tensor. The sizes here are above the CPU kernels' threshold (kStreamBytes), and half of them below
// it.

namespace elwise::testing {
namespace {

using Function = std::function<Tensor(const std::vector<Tensor>& inputs)>;

constexpr DType kDTypes[] = {DType::f32, DType::bf16};

/// Half `half` of the tensor's first dimension.
Tensor half_of(const Tensor& tensor, int64_t half) {
  const Shape shape = tensor.shape().with(0, tensor.size(0) / 2);
  return tensor.alias(shape, half * shape.count());
}

/// The output and the gradients of the floating inputs. `dy` is as y; for a scalar y it is its one element.
std::vector<Tensor> run(const Function& function, const std::vector<Tensor>& inputs, const Tensor& dy) {
  std::vector<Tensor> given, results;
  for (const Tensor& input : inputs) {
    given.push_back(input.detach());
    if (is_floating(input.dtype())) given.back().set_requires_grad();
  }
  results.push_back(function(given));
  results.front().backward(dy);
  for (const Tensor& input : given) {
    if (input.requires_grad()) results.push_back(input.grad());
  }
  return results;
}

/// The rows of the first dimension do not depend on each other, but for a scalar output, a mean over them.
void check_halves(const std::string& name, const Function& function, const std::vector<Tensor>& inputs) {
  const Tensor y = function(inputs);
  const bool is_mean = y.rank() == 0;
  const Tensor dy = is_mean ? ones({}, y.options()) : cast(uniform(y.shape()), y.dtype());
  const std::vector<Tensor> whole = run(function, inputs, dy);
  for (const int64_t half : {0, 1}) {
    std::vector<Tensor> halves;
    for (const Tensor& input : inputs) halves.push_back(half_of(input, half));
    const std::vector<Tensor> part = run(function, halves, is_mean ? mul(dy, 0.5) : half_of(dy, half));
    for (size_t i = is_mean ? 1 : 0; i < whole.size(); ++i) {
      CHECK_MESSAGE(values_of(part[i]) == values_of(half_of(whole[i], half)), name, ": other bits in ",
                    i == 0 ? "the output" : "a gradient", " of half ", half);
    }
  }
}

/// 12.6 million bytes of a dtype: [2, .., cols].
Tensor large(int64_t cols, DType dtype) {
  const int64_t rows = 12'600'000 / size_of(dtype) / cols;
  return cast(uniform({2, rows / 2, cols}), dtype);
}

TEST_CASE("large results have the bits of small ones: ops on elements and softmax") {
  if (test_device() != kCpu) return;
  for (const DType dtype : kDTypes) {
    const std::pair<const char*, Tensor (*)(const Tensor&)> ops[] = {
        {"gelu", [](const Tensor& x) { return gelu(x); }},
        {"exp", exp},
        {"softmax", [](const Tensor& x) { return softmax(x); }},
    };
    for (const auto& [name, op] : ops) {
      for (const int64_t cols : {1024, 1023}) {
        check_halves(name, [op = op](const std::vector<Tensor>& in) { return op(in[0]); },
                     {large(cols, dtype)});
      }
    }
  }
}

TEST_CASE("large results have the bits of small ones: the weights of attention, for every mask") {
  if (test_device() != kCpu) return;
  constexpr int64_t kLength = 512;
  for (const DType dtype : kDTypes) {
    const int64_t heads = dtype == DType::f32 ? 6 : 12;
    std::vector<Tensor> inputs;
    for (int i = 0; i < 3; ++i) inputs.push_back(cast(uniform({2, kLength, 4 * heads}), dtype));
    const Tensor visible = empty({2, kLength}, {.dtype = DType::boolean});
    for (int64_t i = 0; i < visible.count(); ++i) visible.data<bool>()[i] = i % 7 != 0;
    inputs.push_back(visible);
    for (const bool causal : {false, true}) {
      for (const bool masked : {false, true}) {
        check_halves(
            "softmax_attention",
            [&](const std::vector<Tensor>& in) {
              const AttentionOptions options{.causal = causal, .key_mask = masked ? in[3] : Tensor()};
              return softmax_attention(in[0], in[1], in[2], heads, options);
            },
            inputs);
      }
    }
  }
}

TEST_CASE("large results have the bits of small ones: layer normalisation, with a residual and without") {
  if (test_device() != kCpu) return;
  for (const DType dtype : kDTypes) {
    for (const int64_t cols : {768, 769}) {
      const Tensor weight = cast(uniform({cols}), dtype), bias = cast(uniform({cols}), dtype);
      const Tensor x = large(cols, dtype), residual = large(cols, dtype);
      check_halves("layer_norm",
                   [&](const std::vector<Tensor>& in) { return layer_norm(in[0], weight, bias); }, {x});
      check_halves("add_layer_norm",
                   [&](const std::vector<Tensor>& in) {
                     const AddLayerNormResult result = add_layer_norm(in[0], in[1], weight, bias);
                     return add(result.normalized, result.sum);
                   },
                   {x, residual});
    }
  }
}

TEST_CASE("large results have the bits of small ones: the gradient of cross entropy") {
  if (test_device() != kCpu) return;
  for (const DType dtype : kDTypes) {
    for (const int64_t classes : {4096, 4099}) {
      const Tensor logits = large(classes, dtype);
      const Shape rows{2, logits.size(1)};
      std::vector<int64_t> target;
      for (int64_t i = 0; i < rows.count(); ++i) target.push_back(i * 37 % classes);
      check_halves("cross_entropy",
                   [&](const std::vector<Tensor>& in) {
                     const int64_t count = in[1].count();
                     return cross_entropy(reshape(in[0], {count, classes}), reshape(in[1], {count}));
                   },
                   {logits, from_vector(target, rows)});
    }
  }
}

}  // namespace
}  // namespace elwise::testing
