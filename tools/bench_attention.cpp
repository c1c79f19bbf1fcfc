// Element-wise attention, tiled softmax attention and the softmax of the materialised form, as benchmarks.

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "ops/argument_checks.h"
#include "ops/ea_kernels.h"
#include "ops/ea_series_kernels.h"
#include "ops/softmax_kernels.h"
#include "ops/tiled_attention_kernels.h"
#include "tests/support/naive_ea.h"
#include "tests/support/naive_ea_series.h"
#include "tests/support/naive_softmax.h"
#include "tests/support/naive_softmax_attention.h"
#include "tools/bench_case.h"

namespace elwise::tools {
namespace {

/// Channels of batch entries, on which alone element-wise attention works: a sample of a [batch, length,
/// channels] problem that is a [columns, length, 1] problem.
struct Columns {
  explicit Columns(const Shape& shape) : batch(shape[0]), length(shape[1]), channels(shape[2]) {
    constexpr int64_t kPairs = int64_t{1} << 24;  // that the naive form computes in a second or two
    columns = spread(batch * channels, std::clamp<int64_t>(kPairs / (length * length), 2, 16));
  }
  int64_t count() const { return static_cast<int64_t>(columns.size()); }

  Values of(const Tensor& x) const {
    Values values;
    const Tensor host = in_f64(x);
    for (const int64_t column : columns) {
      const double* first = host.data<double>() + column / channels * length * channels + column % channels;
      for (int64_t i = 0; i < length; ++i) values.push_back(first[i * channels]);
    }
    return values;
  }

  int64_t batch, length, channels;
  std::vector<int64_t> columns;
};

constexpr double kLargestQuery = 0.7;     // so that EA-series keeps the digits that the tolerance asks for
constexpr double kLargestGradient = 1.0;  // of the output: the terms that gradients are sums of

/// q, k and v, [batch, length, channels].
struct Inputs {
  Inputs(const Shape& shape, Operands& operands)
      : q(operands.uniform(shape, -kLargestQuery, kLargestQuery)),
        k(operands.uniform(shape, -kLargestQuery, kLargestQuery)),
        v(operands.uniform(shape)) {}
  Tensor q, k, v;
};

struct Gradients {
  Gradients(const Shape& shape, Operands& operands)
      : dq(operands.output(shape)), dk(operands.output(shape)), dv(operands.output(shape)) {}

  std::string difference_from(const Columns& columns, const Values& expected_dq, const Values& expected_dk,
                              const Values& expected_dv) const {
    return first_of({difference("dq", dq.dtype(), columns.of(dq), expected_dq, kLargestGradient),
                     difference("dk", dk.dtype(), columns.of(dk), expected_dk, kLargestGradient),
                     difference("dv", dv.dtype(), columns.of(dv), expected_dv, kLargestGradient)});
  }
  Tensor dq, dk, dv;
};

Tensor series_partials(const Shape& shape, int order, Operands& operands) {
  return operands.scratch_statistics(
      {shape[0], ea_series_chunks(shape[1]), ea_series_carry_rows(order), shape[2]});
}

/// Forward as in training: it writes the moments that backward starts from, which its cost leaves out.
EaSeriesForward series_arguments(const Shape& shape, int order, bool causal, const Inputs& in,
                                 const Tensor& y, Operands& operands) {
  const Shape carry{shape[0], ea_series_carries(shape[1], causal), ea_series_carry_rows(order), shape[2]};
  return {.dtype = operands.dtype(),
          .q = in.q.data(),
          .k = in.k.data(),
          .v = in.v.data(),
          .y = y.data(),
          .batch = shape[0],
          .length = shape[1],
          .channels = shape[2],
          .order = order,
          .causal = causal,
          .carry = operands.scratch_statistics(carry).data(),
          .partials = causal ? nullptr : series_partials(shape, order, operands).data()};
}

KernelCall series_forward(const Shape& shape, int order, bool causal, Operands operands) {
  const Inputs in(shape, operands);
  const Tensor y = operands.output(shape);
  const EaSeriesForward arguments = series_arguments(shape, order, causal, in, y, operands);
  return operands.call(ELWISE_KERNEL(ea_series_forward), arguments, [=] {
    const Columns columns(shape);
    const naive::EaSeriesShape sampled{columns.count(), columns.length, 1, order, causal};
    return difference("y", y.dtype(), columns.of(y),
                      naive::ea_series(sampled, columns.of(in.q), columns.of(in.k), columns.of(in.v)));
  });
}

KernelCall series_backward(const Shape& shape, int order, bool causal, Operands operands) {
  const Inputs in(shape, operands);
  const Tensor dy = operands.uniform(shape, -kLargestGradient, kLargestGradient);
  const Tensor y = operands.scratch(shape);
  const EaSeriesForward forward = series_arguments(shape, order, causal, in, y, operands);
  run(ELWISE_KERNEL(ea_series_forward), forward, operands);
  const Gradients out(shape, operands);
  const EaSeriesBackward arguments{.dtype = operands.dtype(),
                                   .q = in.q.data(),
                                   .k = in.k.data(),
                                   .v = in.v.data(),
                                   .dy = dy.data(),
                                   .carry = forward.carry,
                                   .partials = series_partials(shape, order, operands).data(),
                                   .dq = out.dq.data(),
                                   .dk = out.dk.data(),
                                   .dv = out.dv.data(),
                                   .batch = shape[0],
                                   .length = shape[1],
                                   .channels = shape[2],
                                   .order = order,
                                   .causal = causal};
  return operands.call(ELWISE_KERNEL(ea_series_backward), arguments, [=] {
    const Columns columns(shape);
    const naive::EaSeriesShape sampled{columns.count(), columns.length, 1, order, causal};
    const naive::EaSeriesGradient expected = naive::ea_series_backward(
        sampled, columns.of(in.q), columns.of(in.k), columns.of(in.v), columns.of(dy));
    return out.difference_from(columns, expected.dq, expected.dk, expected.dv);
  });
}

EaForward ea_arguments(DType dtype, const Shape& shape, bool causal, const Inputs& in, const Tensor& y,
                       const Tensor& denominator) {
  return {.dtype = dtype,
          .q = in.q.data(),
          .k = in.k.data(),
          .v = in.v.data(),
          .y = y.data(),
          .denominator = denominator.data(),
          .batch = shape[0],
          .length = shape[1],
          .channels = shape[2],
          .causal = causal};
}

/// sum_j exp(-(q_i - k_j)^2) over the visible keys: what the kernel keeps for backward where, as here, all
/// keys are near.
Values naive_denominator(const naive::EaShape& shape, const Values& q, const Values& k) {
  Values sums;
  for (int64_t b = 0; b < shape.batch; ++b) {
    for (int64_t i = 0; i < shape.length; ++i) {
      double sum = 0;
      for (int64_t j = 0; j < shape.length; ++j) {
        const double distance = q[shape.index(b, i, 0)] - k[shape.index(b, j, 0)];
        if (shape.sees(b, i, j)) sum += std::exp(-distance * distance);
      }
      sums.push_back(sum);
    }
  }
  return sums;
}

KernelCall ea_forward(const Shape& shape, bool causal, Operands operands) {
  static_assert(2 * kLargestQuery < kEaNear);
  const Inputs in(shape, operands);
  const Tensor y = operands.output(shape), denominator = operands.statistics(shape);
  return operands.call(
      ELWISE_KERNEL(ea_forward), ea_arguments(operands.dtype(), shape, causal, in, y, denominator), [=] {
        const Columns columns(shape);
        const naive::EaShape sampled{columns.count(), columns.length, 1, causal};
        const Values q = columns.of(in.q), k = columns.of(in.k);
        return first_of(
            {difference("y", y.dtype(), columns.of(y), naive::ea_forward(sampled, q, k, columns.of(in.v))),
             difference("denominator", denominator.dtype(), columns.of(denominator),
                        naive_denominator(sampled, q, k))});
      });
}

KernelCall ea_backward(const Shape& shape, bool causal, Operands operands) {
  const Inputs in(shape, operands);
  const Tensor dy = operands.uniform(shape, -kLargestGradient, kLargestGradient);
  const Tensor y = operands.scratch(shape), denominator = operands.scratch_statistics(shape);
  run(ELWISE_KERNEL(ea_forward), ea_arguments(operands.dtype(), shape, causal, in, y, denominator), operands);
  const Gradients out(shape, operands);
  const EaBackward arguments{.dtype = operands.dtype(),
                             .q = in.q.data(),
                             .k = in.k.data(),
                             .v = in.v.data(),
                             .y = y.data(),
                             .denominator = denominator.data(),
                             .dy = dy.data(),
                             .dq = out.dq.data(),
                             .dk = out.dk.data(),
                             .dv = out.dv.data(),
                             .batch = shape[0],
                             .length = shape[1],
                             .channels = shape[2],
                             .causal = causal};
  return operands.call(ELWISE_KERNEL(ea_backward), arguments, [=] {
    const Columns columns(shape);
    const naive::EaShape sampled{columns.count(), columns.length, 1, causal};
    const naive::EaGradients expected =
        naive::ea_backward(sampled, columns.of(in.q), columns.of(in.k), columns.of(in.v), columns.of(dy));
    return out.difference_from(columns, expected.dq, expected.dk, expected.dv);
  });
}

// The weights of all heads, [heads, queries, keys]; the sample is of whole heads.

KernelCall softmax_forward(const Shape& shape, bool causal, Operands operands) {
  const int64_t heads = shape[0], queries = shape[1], keys = shape[2];
  const Tensor x = operands.uniform(shape, -4, 4), y = operands.output(shape);
  const SoftmaxForward arguments{.dtype = operands.dtype(),
                                 .x = x.data(),
                                 .y = y.data(),
                                 .rows = heads * queries,
                                 .cols = keys,
                                 .queries = queries,
                                 .causal = causal};
  return operands.call(ELWISE_KERNEL(softmax_forward), arguments, [=] {
    const std::vector<int64_t> sample = spread(heads, 2);
    const int64_t rows = static_cast<int64_t>(sample.size()) * queries;
    return difference("y", y.dtype(), values_at(y, 1, heads, queries * keys, sample),
                      naive::softmax(values_at(x, 1, heads, queries * keys, sample), rows, keys,
                                     {.queries = queries, .causal = causal}));
  });
}

KernelCall softmax_backward(const Shape& shape, Operands operands) {
  const int64_t rows = shape[0] * shape[1], cols = shape[2];
  // Weights of the size that a softmax has, though their sums are not 1.
  const Tensor y = operands.uniform(shape, 0, 2.0 / static_cast<double>(cols));
  const Tensor dy = operands.uniform(shape), dx = operands.output(shape);
  const SoftmaxBackward arguments{
      .dtype = operands.dtype(), .y = y.data(), .dy = dy.data(), .dx = dx.data(), .rows = rows, .cols = cols};
  return operands.call(ELWISE_KERNEL(softmax_backward), arguments, [=] {
    const std::vector<int64_t> sample = spread(rows, 1024);
    return difference(
        "dx", dx.dtype(), values_at(dx, 1, rows, cols, sample),
        naive::softmax_backward(values_at(y, 1, rows, cols, sample), values_at(dy, 1, rows, cols, sample),
                                static_cast<int64_t>(sample.size()), cols));
  });
}

/// Heads of one sequence: a sample of a [1, length, channels] problem that is one with fewer heads.
struct Heads {
  static constexpr int64_t kSize = 64;

  Heads(const Shape& shape, bool causal) : length(shape[1]), heads(shape[2] / kSize) {
    constexpr int64_t kPairs = int64_t{1} << 22;  // that the naive form computes in a second or two
    numbers = spread(heads, std::clamp<int64_t>(kPairs / (length * length), 1, 2));
    sampled = {{1, length, count() * kSize, causal}, count()};
  }
  int64_t count() const { return static_cast<int64_t>(numbers.size()); }

  Values of(const Tensor& x) const { return values_at(x, length, heads, kSize, numbers); }
  Values of_queries(const Tensor& x) const { return values_at(x, 1, heads, length, numbers); }

  int64_t length, heads;
  std::vector<int64_t> numbers;
  naive::SoftmaxAttentionShape sampled;
};

TiledAttentionForward tiled_arguments(DType dtype, const Shape& shape, bool causal, const Inputs& in,
                                      const Tensor& y, const Tensor& logsumexp) {
  return {.dtype = dtype,
          .q = in.q.data(),
          .k = in.k.data(),
          .v = in.v.data(),
          .y = y.data(),
          .logsumexp = logsumexp.data(),
          .batch = shape[0],
          .length = shape[1],
          .channels = shape[2],
          .heads = shape[2] / Heads::kSize,
          .scale = Heads(shape, causal).sampled.scale(),
          .causal = causal};
}

KernelCall tiled_forward(const Shape& shape, bool causal, Operands operands) {
  const Inputs in(shape, operands);
  const Tensor y = operands.output(shape),
               logsumexp = operands.statistics({shape[2] / Heads::kSize, shape[1]});
  const TiledAttentionForward arguments = tiled_arguments(operands.dtype(), shape, causal, in, y, logsumexp);
  return operands.call(ELWISE_KERNEL(tiled_attention_forward), arguments, [=] {
    const Heads heads(shape, causal);
    const Values q = heads.of(in.q), k = heads.of(in.k);
    return first_of({difference("y", y.dtype(), heads.of(y),
                                naive::softmax_attention(heads.sampled, q, k, heads.of(in.v))),
                     difference("logsumexp", logsumexp.dtype(), heads.of_queries(logsumexp),
                                naive::softmax_attention_logsumexp(heads.sampled, q, k))});
  });
}

KernelCall tiled_backward(const Shape& shape, bool causal, Operands operands) {
  const Inputs in(shape, operands);
  const Tensor dy = operands.uniform(shape, -kLargestGradient, kLargestGradient);
  const Shape per_query{shape[2] / Heads::kSize, shape[1]};
  const Tensor y = operands.scratch(shape), logsumexp = operands.scratch_statistics(per_query);
  const TiledAttentionForward forward = tiled_arguments(operands.dtype(), shape, causal, in, y, logsumexp);
  run(ELWISE_KERNEL(tiled_attention_forward), forward, operands);
  const Gradients out(shape, operands);
  Tensor key_sums;
  if (operands.dtype() == DType::bf16) {
    key_sums = operands.scratch_statistics({2, forward.batch, forward.length, forward.channels});
  }
  const TiledAttentionBackward arguments{.dtype = operands.dtype(),
                                         .q = in.q.data(),
                                         .k = in.k.data(),
                                         .v = in.v.data(),
                                         .y = y.data(),
                                         .dy = dy.data(),
                                         .logsumexp = logsumexp.data(),
                                         .delta = operands.scratch_statistics(per_query).data(),
                                         .key_sums = data_or_null(key_sums),
                                         .dq = out.dq.data(),
                                         .dk = out.dk.data(),
                                         .dv = out.dv.data(),
                                         .batch = forward.batch,
                                         .length = forward.length,
                                         .channels = forward.channels,
                                         .heads = forward.heads,
                                         .scale = forward.scale,
                                         .causal = causal};
  return operands.call(ELWISE_KERNEL(tiled_attention_backward), arguments, [=] {
    const Heads heads(shape, causal);
    const naive::EaGradients expected = naive::softmax_attention_backward(
        heads.sampled, heads.of(in.q), heads.of(in.k), heads.of(in.v), heads.of(dy));
    return first_of({difference("dq", out.dq.dtype(), heads.of(out.dq), expected.dq, kLargestGradient),
                     difference("dk", out.dk.dtype(), heads.of(out.dk), expected.dk, kLargestGradient),
                     difference("dv", out.dv.dtype(), heads.of(out.dv), expected.dv, kLargestGradient)});
  });
}

}  // namespace

std::vector<BenchCase> attention_bench_cases() {
  using namespace std::placeholders;
  const Shape one{1, 512, 768}, long_one{1, 2048, 768}, four{4, 2048, 768}, heads{12, 512, 512};
  std::vector<BenchCase> cases;
  for (const Shape& shape : {one, four}) {
    for (const int order : {2, 6}) {
      for (const bool causal : {false, true}) {
        const std::string form = fmt::format("t{}{}", order, causal ? "/causal" : "");
        cases.push_back(bench_case("ea_series_forward", shape, form,
                                   std::bind(series_forward, shape, order, causal, _1)));
        cases.push_back(bench_case("ea_series_backward", shape, form,
                                   std::bind(series_backward, shape, order, causal, _1)));
      }
    }
  }
  for (const bool causal : {false, true}) {
    const std::string form = causal ? "causal" : "";
    cases.push_back(bench_case("ea_forward", one, form, std::bind(ea_forward, one, causal, _1)));
    cases.push_back(bench_case("ea_backward", one, form, std::bind(ea_backward, one, causal, _1)));
    for (const Shape& shape : {one, long_one}) {
      cases.push_back(
          bench_case("tiled_attention_forward", shape, form, std::bind(tiled_forward, shape, causal, _1)));
      cases.push_back(
          bench_case("tiled_attention_backward", shape, form, std::bind(tiled_backward, shape, causal, _1)));
    }
    cases.push_back(
        bench_case("softmax_forward", heads, form, std::bind(softmax_forward, heads, causal, _1)));
  }
  cases.push_back(bench_case("softmax_backward", heads, "", std::bind(softmax_backward, heads, _1)));
  return cases;
}

}  // namespace elwise::tools
