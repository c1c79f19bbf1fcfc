// What the Attention Free Transformer does around its matrix products, as benchmarks.

#include <algorithm>
#include <cmath>
#include <functional>

#include "ops/aft_kernels.h"
#include "ops/elementwise.h"
#include "ops/view.h"
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
int64_t* constant(const Shape& shape, int64_t value, Operands& operands) {
  const std::vector<int64_t> values(static_cast<size_t>(shape.count()), value);
  return static_cast<int64_t*>(operands.shared(to(from_vector(values, shape), operands.device())).data());
}

KernelCall keys(const Shape& shape, Operands operands) {
  const Tensor k = operands.uniform(shape), v = operands.uniform(shape),
               result = operands.output(pair_shape(shape));
  const AftKeys arguments{.dtype = operands.dtype(),
                          .k = k.data(),
                          .v = v.data(),
                          .keys = result.data(),
                          .batch = shape[0],
                          .length = shape[1],
                          .channels = shape[2],
                          .first_large = constant({shape[0], shape[2]}, 0, operands)};
  return operands.call(ELWISE_KERNEL(aft_keys), arguments, [=] {
    const SampledRows rows(shape);
    const Values weight = map([](double x) { return std::exp(x); }, rows.of(k));
    return first_of({difference("k v", result.dtype(), rows.of_pairs(result, 0),
                                map(std::multiplies(), weight, rows.of(v))),
                     difference("k", result.dtype(), rows.of_pairs(result, 1), weight)});
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
  const Tensor q = operands.uniform(shape), y = operands.output(shape);
  const Shape one{shape[1], shape[0], 1, shape[2]};
  const Tensor sums =
      operands.shared(concat({operands.uniform(one), ones(one, {operands.dtype(), operands.device()})}, 2));
  const AftOutputs arguments{.dtype = operands.dtype(),
                             .q = q.data(),
                             .first_large = constant({shape[0], shape[2]}, shape[1], operands),
                             .sums = sums.data(),
                             .direct_answers = constant({1}, 0, operands),
                             .y = y.data(),
                             .batch = shape[0],
                             .length = shape[1],
                             .channels = shape[2],
                             .direct = unused_direct(shape, operands)};
  return operands.call(ELWISE_KERNEL(aft_outputs), arguments, [=] {
    const SampledRows rows(shape);
    const Values gates = map(gate, rows.of(q));
    return difference("y", y.dtype(), rows.of(y), map(std::multiplies(), gates, rows.of_pairs(sums, 0)));
  });
}

KernelCall output_gradients(const Shape& shape, Operands operands) {
  const Tensor q = operands.uniform(shape), sums = operands.uniform(pair_shape(shape), 0.5, 1),
               dy = operands.uniform(shape);
  const Tensor dq = operands.output(shape), gradients = operands.output(pair_shape(shape));
  const AftOutputGradients arguments{.dtype = operands.dtype(),
                                     .q = q.data(),
                                     .sums = sums.data(),
                                     .dy = dy.data(),
                                     .dq = dq.data(),
                                     .gradients = gradients.data(),
                                     .batch = shape[0],
                                     .length = shape[1],
                                     .channels = shape[2]};
  return operands.call(ELWISE_KERNEL(aft_output_gradients), arguments, [=] {
    const SampledRows rows(shape);
    const Values gates = map(gate, rows.of(q)), u = map(std::multiplies(), gates, rows.of(dy)),
                 r = rows.of_pairs(sums, 0), a = map(std::divides(), u, rows.of_pairs(sums, 1));
    return first_of(
        {difference("dq", dq.dtype(), rows.of(dq),
                    map([](double x, double y, double z) { return x * y * (1 - z); }, u, r, gates)),
         difference("a", gradients.dtype(), rows.of_pairs(gradients, 0), a),
         difference("b", gradients.dtype(), rows.of_pairs(gradients, 1),
                    map([](double x, double y) { return -x * y; }, a, r))});
  });
}

KernelCall key_gradients(const Shape& shape, Operands operands) {
  const Tensor unused = operands.scratch({1}), keys = operands.uniform(pair_shape(shape)),
               key_sums = operands.uniform(pair_shape(shape));
  const Tensor dk = operands.output(shape), dv = operands.output(shape);
  const AftKeyGradients arguments{.dtype = operands.dtype(),
                                  .q = unused.data(),
                                  .sums = unused.data(),
                                  .dy = unused.data(),
                                  .keys = keys.data(),
                                  .key_sums = key_sums.data(),
                                  .direct_answers = constant({1}, 0, operands),
                                  .dk = dk.data(),
                                  .dv = dv.data(),
                                  .batch = shape[0],
                                  .length = shape[1],
                                  .channels = shape[2],
                                  .direct = unused_direct(shape, operands)};
  return operands.call(ELWISE_KERNEL(aft_key_gradients), arguments, [=] {
    const SampledRows rows(shape);
    const Values weighted = rows.of_pairs(keys, 0), weight = rows.of_pairs(keys, 1),
                 a = rows.of_pairs(key_sums, 0), b = rows.of_pairs(key_sums, 1);
    return first_of(
        {difference("dk", dk.dtype(), rows.of(dk),
                    map(std::plus(), map(std::multiplies(), weighted, a), map(std::multiplies(), weight, b))),
         difference("dv", dv.dtype(), rows.of(dv), map(std::multiplies(), weight, a))});
  });
}

KernelCall bias_gradient(const Shape& shape, Operands operands) {
  const Shape square{shape[1], shape[1]};
  const Tensor unused = operands.scratch({1}), weights = operands.uniform(square),
               products = operands.uniform(square), dw = operands.output(square);
  const AftBiasGradient arguments{.dtype = operands.dtype(),
                                  .q = unused.data(),
                                  .sums = unused.data(),
                                  .dy = unused.data(),
                                  .weights = weights.data(),
                                  .products = products.data(),
                                  .direct_answers = constant({1}, 0, operands),
                                  .dw = dw.data(),
                                  .batch = shape[0],
                                  .length = shape[1],
                                  .channels = shape[2],
                                  .direct = unused_direct(shape, operands)};
  return operands.call(ELWISE_KERNEL(aft_bias_gradient), arguments, [=] {
    return difference("dw", dw.dtype(), values_of(dw),
                      map(std::multiplies(), values_of(weights), values_of(products)));
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
