// Kernels that work element by element, as benchmarks: GELU, addition, dropout, Adam's step.

#include <cmath>

#include "ops/dropout_kernels.h"
#include "ops/elementwise.h"
#include "ops/elementwise_kernels.h"
#include "ops/optimizer_step.h"
#include "ops/optimizer_step_kernels.h"
#include "tests/support/naive_elementwise.h"
#include "tests/support/naive_optimizer.h"
#include "tools/bench_case.h"

namespace elwise::tools {
namespace {

/// A sample of the elements of tensors of one size.
struct Elements {
  explicit Elements(int64_t size) : count(size), sample(spread(size, 200'003)) {}
  Values of(const Tensor& x) const { return values_at(x, 1, count, 1, sample); }

  int64_t count;
  std::vector<int64_t> sample;
};

KernelCall gelu_forward(const Shape& shape, Operands operands) {
  const Tensor x = operands.uniform(shape, -4, 4), y = operands.output(shape);
  const UnaryForward arguments{
      .dtype = operands.dtype(), .op = UnaryOp::gelu, .x = x.data(), .y = y.data(), .count = shape.count()};
  return operands.call(ELWISE_KERNEL(unary_forward), arguments, [=] {
    const Elements elements(shape.count());
    Values expected = elements.of(x);
    for (double& value : expected) value = naive::unary(UnaryOp::gelu, value);
    return difference("y", y.dtype(), elements.of(y), expected);
  });
}

KernelCall gelu_backward(const Shape& shape, Operands operands) {
  const Tensor x = operands.uniform(shape, -4, 4), dy = operands.uniform(shape), dx = operands.output(shape);
  const UnaryBackward arguments{.dtype = operands.dtype(),
                                .op = UnaryOp::gelu,
                                .saved = x.data(),
                                .dy = dy.data(),
                                .dx = dx.data(),
                                .count = shape.count()};
  return operands.call(ELWISE_KERNEL(unary_backward), arguments, [=] {
    const Elements elements(shape.count());
    const Values input = elements.of(x);
    Values expected = elements.of(dy);
    for (size_t i = 0; i < input.size(); ++i) expected[i] *= naive::unary_derivative(UnaryOp::gelu, input[i]);
    return difference("dx", dx.dtype(), elements.of(dx), expected);
  });
}

KernelCall add(const Shape& shape, Operands operands) {
  const Tensor a = operands.uniform(shape), b = operands.uniform(shape), y = operands.output(shape);
  const BinaryForward arguments{.dtype = operands.dtype(),
                                .op = BinaryOp::add,
                                .a = a.data(),
                                .b = b.data(),
                                .y = y.data(),
                                .extents = {.rank = 1, .size = {shape.count()}},
                                .a_strides = {1},
                                .b_strides = {1}};
  return operands.call(ELWISE_KERNEL(binary_forward), arguments, [=] {
    const Elements elements(shape.count());
    const Values left = elements.of(a), right = elements.of(b);
    Values expected;
    for (size_t i = 0; i < left.size(); ++i)
      expected.push_back(naive::binary(BinaryOp::add, left[i], right[i]));
    return difference("y", y.dtype(), elements.of(y), expected);
  });
}

KernelCall dropout(const Shape& shape, Operands operands) {
  constexpr double kP = 0.1;
  const Tensor x = operands.uniform(shape), y = operands.output(shape);
  const Dropout arguments{.dtype = operands.dtype(),
                          .x = x.data(),
                          .y = y.data(),
                          .count = shape.count(),
                          .p = kP,
                          .stream = operands.random(shape.count())};
  return operands.call(ELWISE_KERNEL(dropout), arguments, [=] {
    const Elements elements(shape.count());
    Values expected = elements.of(x);
    for (size_t i = 0; i < expected.size(); ++i) {
      const auto word = arguments.stream.word(static_cast<uint64_t>(elements.sample[i]));
      expected[i] = static_cast<double>(uniform01(word)) >= kP ? expected[i] / (1 - kP) : 0;
    }
    return difference("y", y.dtype(), elements.of(y), expected);
  });
}

/// A step of AdamW, with a remainder in bf16, as in training. The rate is large, so that an error in the step
/// shows in the parameter.
KernelCall adam_step(const Shape& shape, Operands operands) {
  const naive::AdamOptions options{.lr = 0.1, .weight_decay = 0.01};
  constexpr int64_t kStep = 10;
  const Elements elements(shape.count());
  const Tensor grad = operands.uniform(shape), param = operands.updated(operands.uniform(shape)),
               m = operands.updated(operands.uniform_statistics(shape)),
               v = operands.updated(operands.uniform_statistics(shape, 0.01, 1));
  Tensor remainder;
  if (operands.dtype() == DType::bf16) {
    remainder = operands.shared(zeros(shape, {.dtype = DType::i16, .device = operands.device()}));
  }
  naive::AdamState before(elements.of(param));
  before.m = elements.of(m);
  before.v = elements.of(v);
  before.step = kStep - 1;
  const AdamStep arguments{.dtype = operands.dtype(),
                           .param = param.data(),
                           .grad = grad.data(),
                           .m = m.data(),
                           .v = v.data(),
                           .count = shape.count(),
                           .lr = options.lr,
                           .beta1 = options.beta1,
                           .beta2 = options.beta2,
                           .eps = options.eps,
                           .weight_decay = options.weight_decay,
                           .decoupled = true,
                           .step_size = options.lr / (1 - std::pow(options.beta1, kStep)),
                           .v_scale = 1 / std::sqrt(1 - std::pow(options.beta2, kStep)),
                           .adaptive = true,
                           .remainder = remainder.defined() ? remainder.data() : nullptr};
  return operands.call(ELWISE_KERNEL(adam_step), arguments, [=] {
    naive::AdamState expected = before;
    naive::adam_step(expected, elements.of(grad), options, true);
    const Tensor stepped = remainder.defined() ? master_copy(param, remainder) : param;
    return first_of({difference("param", param.dtype(), elements.of(param), expected.param),
                     difference("master", stepped.dtype(), elements.of(stepped), expected.param),
                     difference("m", m.dtype(), elements.of(m), expected.m),
                     difference("v", v.dtype(), elements.of(v), expected.v)});
  });
}

}  // namespace

std::vector<BenchCase> elementwise_bench_cases() {
  std::vector<BenchCase> cases;
  const auto each = [&](const char* kernel, const char* form, KernelCall (*make)(const Shape&, Operands),
                        std::initializer_list<Shape> shapes) {
    for (const Shape& shape : shapes) {
      cases.push_back(bench_case(kernel, shape, form, [make, shape](Operands operands) {
        return make(shape, std::move(operands));
      }));
    }
  };
  each("unary_forward", "gelu", gelu_forward, {{512, 3072}, {8192, 3072}});
  each("unary_backward", "gelu", gelu_backward, {{512, 3072}, {8192, 3072}});
  each("binary_forward", "add", add, {{512, 768}, {8192, 768}});
  each("dropout", "", dropout, {{512, 768}, {12, 512, 512}});
  each("adam_step", "", adam_step, {{768, 768}, {30522 * 768}});  // a layer's weight, the embedding
  return cases;
}

}  // namespace elwise::tools
