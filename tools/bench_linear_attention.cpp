// Linear attention, as benchmarks.

#include "ops/linear_attention_kernels.h"
#include "tests/support/naive_linear_attention.h"
#include "tools/bench_case.h"

namespace elwise::tools {
namespace {

constexpr int64_t kHeads = 12;

/// Heads of batch entries, each a problem of its own: a sample of a [batch, length, channels] problem that is
/// a [count, length, channels / kHeads] problem of one head.
struct SampledHeads {
  explicit SampledHeads(const Shape& shape)
      : batch(shape[0]), length(shape[1]), head(shape[2] / kHeads), pairs(spread(batch * kHeads, 2)) {}

  naive::EaShape shape(bool causal) const {
    return {static_cast<int64_t>(pairs.size()), length, head, causal};
  }

  /// Of [batch, length, channels].
  Values of(const Tensor& x) const {
    Values values;
    for (const int64_t pair : pairs) {
      const Values of_pair = values_at(x, batch * length, kHeads, head, {pair % kHeads});
      const auto first = of_pair.begin() + pair / kHeads * length * head;
      values.insert(values.end(), first, first + length * head);
    }
    return values;
  }

  int64_t batch, length, head;
  std::vector<int64_t> pairs;
};

struct Inputs {
  Inputs(const Shape& shape, Operands& operands)
      : q(operands.uniform(shape)), k(operands.uniform(shape)), v(operands.uniform(shape)) {}
  Tensor q, k, v;
};

Shape state_shape(const Shape& shape, bool causal) {
  const int64_t head = shape[2] / kHeads;
  return {shape[0], kHeads, linear_attention_states(shape[0], shape[1], kHeads, causal), head + 1, head};
}

LinearAttentionForward forward_arguments(const Shape& shape, bool causal, const Inputs& in, const Tensor& y,
                                         Operands& operands) {
  return {.dtype = DType::f32,
          .q = in.q.data(),
          .k = in.k.data(),
          .v = in.v.data(),
          .y = y.data(),
          .denominator = operands.scratch({shape[0], kHeads, shape[1]}).data(),
          .states = operands.scratch(state_shape(shape, causal)).data(),
          .batch = shape[0],
          .length = shape[1],
          .heads = kHeads,
          .head = shape[2] / kHeads,
          .causal = causal};
}

KernelCall forward(const Shape& shape, bool causal, Operands operands) {
  const Inputs in(shape, operands);
  const Tensor y = operands.output(shape);
  return operands.call(cpu::linear_attention_forward, forward_arguments(shape, causal, in, y, operands), [=] {
    const SampledHeads heads(shape);
    const Values v = heads.of(in.v);
    return difference(
        "y", heads.of(y),
        naive::linear_attention(heads.shape(causal), 1, heads.of(in.q), heads.of(in.k), v, v).y);
  });
}

KernelCall backward(const Shape& shape, bool causal, Operands operands) {
  const Inputs in(shape, operands);
  const Tensor dy = operands.uniform(shape), y = operands.scratch(shape);
  const LinearAttentionForward kept = forward_arguments(shape, causal, in, y, operands);
  cpu::linear_attention_forward(kept);
  const Tensor dq = operands.output(shape), dk = operands.output(shape), dv = operands.output(shape);
  const LinearAttentionBackward arguments{
      .dtype = DType::f32,
      .q = in.q.data(),
      .k = in.k.data(),
      .v = in.v.data(),
      .y = y.data(),
      .dy = dy.data(),
      .denominator = kept.denominator,
      .states = kept.states,
      .gradient_states = operands.scratch(state_shape(shape, causal)).data(),
      .dq = dq.data(),
      .dk = dk.data(),
      .dv = dv.data(),
      .batch = shape[0],
      .length = shape[1],
      .heads = kHeads,
      .head = kept.head,
      .causal = causal};
  return operands.call(cpu::linear_attention_backward, arguments, [=] {
    const SampledHeads heads(shape);
    const auto expected = naive::linear_attention(heads.shape(causal), 1, heads.of(in.q), heads.of(in.k),
                                                  heads.of(in.v), heads.of(dy));
    constexpr double kTerms = 1;  // the size of dy
    return first_of({difference("dq", heads.of(dq), expected.dq, kTerms),
                     difference("dk", heads.of(dk), expected.dk, kTerms),
                     difference("dv", heads.of(dv), expected.dv, kTerms)});
  });
}

}  // namespace

std::vector<BenchCase> linear_attention_bench_cases() {
  using namespace std::placeholders;
  std::vector<BenchCase> cases;
  for (const Shape& shape : {Shape{1, 512, 768}, Shape{4, 2048, 768}}) {
    for (const bool causal : {false, true}) {
      const std::string form = causal ? "causal" : "";
      cases.push_back(
          bench_case("linear_attention_forward", shape, form, std::bind(forward, shape, causal, _1)));
      cases.push_back(
          bench_case("linear_attention_backward", shape, form, std::bind(backward, shape, causal, _1)));
    }
  }
  return cases;
}

}  // namespace elwise::tools
