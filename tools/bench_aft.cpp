// What the Attention Free Transformer does around its matrix products, as benchmarks.

#include <algorithm>
#include <cmath>
#include <functional>

#include "ops/aft_kernels.h"
#include "tools/bench_case.h"

namespace elwise::tools {
namespace {

// Operands and results of the products are [length, batch, 2, channels]. No answer is direct.

Shape pair_shape(const Shape& shape) {
  return {shape[1], shape[0], 2, shape[2]};
}

/// Some rows of the tensors of one problem, in the order of [length, batch, channels].
struct SampledRows {
  explicit SampledRows(const Shape& shape)
      : batch(shape[0]), length(shape[1]), channels(shape[2]), rows(spread(length, 24)) {}

  /// Of [batch, length, channels].
  Values of(const Tensor& x) const {
    Values values;
    for (const int64_t row : rows) {
      const Values of_row = values_at(x, batch, length, channels, {row});
      values.insert(values.end(), of_row.begin(), of_row.end());
    }
    return values;
  }
  /// The first or the second of each pair of [length, batch, 2, channels].
  Values of_pairs(const Tensor& x, int64_t which) const {
    const Values all = values_at(x, 1, length, batch * 2 * channels, rows);
    Values values;
    for (int64_t first = which * channels; first < static_cast<int64_t>(all.size()); first += 2 * channels) {
      values.insert(values.end(), all.begin() + first, all.begin() + first + channels);
    }
    return values;
  }

  int64_t batch, length, channels;
  std::vector<int64_t> rows;
};

template <class Function>
Values map(const Function& function, const Values& first, const auto&... others) {
  Values result;
  for (size_t i = 0; i < first.size(); ++i) result.push_back(function(first[i], others[i]...));
  return result;
}

double gate(double q) {
  return 1 / (1 + std::exp(-q));
}

/// i64 indices that hold one value.
Tensor constant(const Shape& shape, int64_t value, Operands& operands) {
  return operands.shared(from_vector(std::vector<int64_t>(static_cast<size_t>(shape.count()), value), shape));
}

KernelCall keys(const Shape& shape, Operands operands) {
  const Tensor k = operands.uniform(shape), v = operands.uniform(shape),
               result = operands.output(pair_shape(shape));
  const AftKeys arguments{.dtype = DType::f32,
                          .k = k.data(),
                          .v = v.data(),
                          .keys = result.data(),
                          .batch = shape[0],
                          .length = shape[1],
                          .channels = shape[2],
                          .first_large = constant({shape[0], shape[2]}, 0, operands).data<int64_t>()};
  return operands.call(cpu::aft_keys, arguments, [=] {
    const SampledRows rows(shape);
    const Values weight = map([](double x) { return std::exp(x); }, rows.of(k));
    return first_of({difference("k v", rows.of_pairs(result, 0), map(std::multiplies(), weight, rows.of(v))),
                     difference("k", rows.of_pairs(result, 1), weight)});
  });
}

/// What direct answers would read.
AftDirect unused_direct(const Shape& shape, Operands& operands) {
  const Tensor none = operands.scratch({1});
  return {.k = none.data(),
          .v = none.data(),
          .position_bias = none.data(),
          .positions = shape[1],
          .causal = false};
}

/// With denominators of 1, so that the sums are the same after any number of calls.
KernelCall outputs(const Shape& shape, Operands operands) {
  const Tensor q = operands.uniform(shape), sums = operands.uniform(pair_shape(shape)),
               y = operands.output(shape);
  for (int64_t row = 0; row < shape[1] * shape[0]; ++row) {
    std::fill_n(sums.data<float>() + (2 * row + 1) * shape[2], shape[2], 1.0F);
  }
  const AftOutputs arguments{
      .dtype = DType::f32,
      .q = q.data(),
      .first_large = constant({shape[0], shape[2]}, shape[1], operands).data<int64_t>(),
      .sums = sums.data(),
      .direct_answers = constant({1}, 0, operands).data<int64_t>(),
      .y = y.data(),
      .batch = shape[0],
      .length = shape[1],
      .channels = shape[2],
      .direct = unused_direct(shape, operands)};
  return operands.call(cpu::aft_outputs, arguments, [=] {
    const SampledRows rows(shape);
    const Values gates = map(gate, rows.of(q));
    return difference("y", rows.of(y), map(std::multiplies(), gates, rows.of_pairs(sums, 0)));
  });
}

KernelCall output_gradients(const Shape& shape, Operands operands) {
  const Tensor q = operands.uniform(shape), sums = operands.uniform(pair_shape(shape), 0.5, 1),
               dy = operands.uniform(shape);
  const Tensor dq = operands.output(shape), gradients = operands.output(pair_shape(shape));
  const AftOutputGradients arguments{.dtype = DType::f32,
                                     .q = q.data(),
                                     .sums = sums.data(),
                                     .dy = dy.data(),
                                     .dq = dq.data(),
                                     .gradients = gradients.data(),
                                     .batch = shape[0],
                                     .length = shape[1],
                                     .channels = shape[2]};
  return operands.call(cpu::aft_output_gradients, arguments, [=] {
    const SampledRows rows(shape);
    const Values gates = map(gate, rows.of(q)), u = map(std::multiplies(), gates, rows.of(dy)),
                 r = rows.of_pairs(sums, 0), a = map(std::divides(), u, rows.of_pairs(sums, 1));
    return first_of(
        {difference("dq", rows.of(dq),
                    map([](double x, double y, double z) { return x * y * (1 - z); }, u, r, gates)),
         difference("a", rows.of_pairs(gradients, 0), a),
         difference("b", rows.of_pairs(gradients, 1), map([](double x, double y) { return -x * y; }, a, r))});
  });
}

KernelCall key_gradients(const Shape& shape, Operands operands) {
  const Tensor unused = operands.scratch({1}), keys = operands.uniform(pair_shape(shape)),
               key_sums = operands.uniform(pair_shape(shape));
  const Tensor dk = operands.output(shape), dv = operands.output(shape);
  const AftKeyGradients arguments{.dtype = DType::f32,
                                  .q = unused.data(),
                                  .sums = unused.data(),
                                  .dy = unused.data(),
                                  .keys = keys.data(),
                                  .key_sums = key_sums.data(),
                                  .direct_answers = constant({1}, 0, operands).data<int64_t>(),
                                  .dk = dk.data(),
                                  .dv = dv.data(),
                                  .batch = shape[0],
                                  .length = shape[1],
                                  .channels = shape[2],
                                  .direct = unused_direct(shape, operands)};
  return operands.call(cpu::aft_key_gradients, arguments, [=] {
    const SampledRows rows(shape);
    const Values weighted = rows.of_pairs(keys, 0), weight = rows.of_pairs(keys, 1),
                 a = rows.of_pairs(key_sums, 0), b = rows.of_pairs(key_sums, 1);
    return first_of(
        {difference("dk", rows.of(dk),
                    map(std::plus(), map(std::multiplies(), weighted, a), map(std::multiplies(), weight, b))),
         difference("dv", rows.of(dv), map(std::multiplies(), weight, a))});
  });
}

KernelCall bias_gradient(const Shape& shape, Operands operands) {
  const Shape square{shape[1], shape[1]};
  const Tensor unused = operands.scratch({1}), weights = operands.uniform(square),
               products = operands.uniform(square), dw = operands.output(square);
  const AftBiasGradient arguments{.dtype = DType::f32,
                                  .q = unused.data(),
                                  .sums = unused.data(),
                                  .dy = unused.data(),
                                  .weights = weights.data(),
                                  .products = products.data(),
                                  .direct_answers = constant({1}, 0, operands).data<int64_t>(),
                                  .dw = dw.data(),
                                  .batch = shape[0],
                                  .length = shape[1],
                                  .channels = shape[2],
                                  .direct = unused_direct(shape, operands)};
  return operands.call(cpu::aft_bias_gradient, arguments, [=] {
    return difference("dw", values_of(dw), map(std::multiplies(), values_of(weights), values_of(products)));
  });
}

}  // namespace

std::vector<BenchCase> aft_bench_cases() {
  using namespace std::placeholders;
  std::vector<BenchCase> cases;
  for (const Shape& shape : {Shape{1, 512, 768}, Shape{4, 2048, 768}}) {
    cases.push_back(bench_case("aft_keys", shape, "", std::bind(keys, shape, _1)));
    cases.push_back(bench_case("aft_outputs", shape, "", std::bind(outputs, shape, _1)));
    cases.push_back(bench_case("aft_output_gradients", shape, "", std::bind(output_gradients, shape, _1)));
    cases.push_back(bench_case("aft_key_gradients", shape, "", std::bind(key_gradients, shape, _1)));
    cases.push_back(bench_case("aft_bias_gradient", shape, "", std::bind(bias_gradient, shape, _1)));
  }
  return cases;
}

}  // namespace elwise::tools
