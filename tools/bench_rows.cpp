// Kernels that work by rows or down columns, as benchmarks: LayerNorm, cross-entropy, sums and running sums.

#include "ops/cumsum_kernels.h"
#include "ops/loss_kernels.h"
#include "ops/norm_kernels.h"
#include "ops/reduce_kernels.h"
#include "tests/support/naive_elementwise.h"
#include "tests/support/naive_norm.h"
#include "tests/support/naive_softmax.h"
#include "tools/bench_case.h"

namespace elwise::tools {
namespace {

constexpr double kEps = 1e-12;  // BERT's
constexpr int64_t kIgnored = -100;

KernelCall layer_norm_forward(const Shape& shape, bool with_residual, Operands operands) {
  const int64_t rows = shape[0], cols = shape[1];
  const Tensor x = operands.uniform(shape), weight = operands.uniform({cols}),
               bias = operands.uniform({cols});
  const Tensor residual = with_residual ? operands.uniform(shape) : Tensor();
  const Tensor y = operands.output(shape), mean = operands.statistics({rows}),
               rstd = operands.statistics({rows});
  const Tensor sum = with_residual ? operands.output(shape) : Tensor();
  const LayerNormForward arguments{.dtype = operands.dtype(),
                                   .x = x.data(),
                                   .y = y.data(),
                                   .mean = mean.data(),
                                   .rstd = rstd.data(),
                                   .rows = rows,
                                   .cols = cols,
                                   .eps = kEps,
                                   .residual = with_residual ? residual.data() : nullptr,
                                   .sum = with_residual ? sum.data() : nullptr,
                                   .weight = weight.data(),
                                   .bias = bias.data()};
  return operands.call(ELWISE_KERNEL(layer_norm_forward), arguments, [=] {
    const naive::LayerNorm expected =
        naive::layer_norm(values_of(x), rows, cols, kEps, with_residual ? values_of(residual) : Values(),
                          values_of(weight), values_of(bias));
    return first_of({difference("y", y.dtype(), values_of(y), expected.y),
                     difference("mean", y.dtype(), values_of(mean), expected.mean),
                     difference("rstd", y.dtype(), values_of(rstd), expected.rstd),
                     with_residual ? difference("sum", sum.dtype(), values_of(sum), expected.h) : ""});
  });
}

/// With `with_dsum`, a gradient also comes through the sum of x and residual (layers that normalise first).
KernelCall layer_norm_backward(const Shape& shape, bool with_dsum, Operands operands) {
  const int64_t rows = shape[0], cols = shape[1];
  const Tensor h = operands.uniform(shape), dy = operands.uniform(shape), weight = operands.uniform({cols});
  const Tensor dsum = with_dsum ? operands.uniform(shape) : Tensor();
  const Tensor mean = operands.scratch_statistics({rows}), rstd = operands.scratch_statistics({rows});
  const Tensor dx = operands.output(shape), dweight = operands.output({cols}),
               dbias = operands.output({cols});
  const Tensor y = operands.scratch(shape);
  const LayerNormForward forward{.dtype = operands.dtype(),
                                 .x = h.data(),
                                 .y = y.data(),
                                 .mean = mean.data(),
                                 .rstd = rstd.data(),
                                 .rows = rows,
                                 .cols = cols,
                                 .eps = kEps};
  run(ELWISE_KERNEL(layer_norm_forward), forward, operands);
  const LayerNormBackward arguments{
      .dtype = operands.dtype(),
      .h = h.data(),
      .mean = mean.data(),
      .rstd = rstd.data(),
      .dy = dy.data(),
      .dx = dx.data(),
      .rows = rows,
      .cols = cols,
      .weight = weight.data(),
      .dsum = with_dsum ? dsum.data() : nullptr,
      .dweight = dweight.data(),
      .dbias = dbias.data(),
      .partials = operands.scratch_statistics({2, layer_norm_partials(rows), cols}).data()};
  return operands.call(ELWISE_KERNEL(layer_norm_backward), arguments, [=] {
    const naive::LayerNormGradients expected =
        naive::layer_norm_backward(values_of(h), values_of(dy), rows, cols, kEps, values_of(weight),
                                   with_dsum ? values_of(dsum) : Values());
    return first_of({difference("dx", dx.dtype(), values_of(dx), expected.dx),
                     difference("dweight", dweight.dtype(), values_of(dweight), expected.dweight),
                     difference("dbias", dbias.dtype(), values_of(dbias), expected.dbias)});
  });
}

CrossEntropyForward cross_entropy(const Shape& shape, const Tensor& logits, const Tensor& target,
                                  const Tensor& loss, const Tensor& logsumexp, Operands& operands) {
  return {.dtype = operands.dtype(),
          .logits = logits.data(),
          .target = static_cast<const int64_t*>(target.data()),
          .loss = loss.data(),
          .logsumexp = logsumexp.data(),
          .row_loss = operands.scratch_statistics({shape[0]}).data(),
          .rows = shape[0],
          .classes = shape[1],
          .ignore_index = kIgnored};
}

KernelCall cross_entropy_forward(const Shape& shape, Operands operands) {
  const int64_t rows = shape[0], classes = shape[1];
  const Tensor logits = operands.uniform(shape, -4, 4), target = operands.indices(rows, classes);
  const Tensor loss = operands.output({1}), logsumexp = operands.statistics({rows});
  const CrossEntropyForward arguments = cross_entropy(shape, logits, target, loss, logsumexp, operands);
  return operands.call(ELWISE_KERNEL(cross_entropy_forward), arguments, [=] {
    const std::vector<int64_t> targets = target.to_vector<int64_t>();
    Values row_logsumexp;
    for (int64_t r = 0; r < rows; ++r) {  // a row's loss is its logsumexp less the target's logit
      const Values row = values_at(logits, 1, rows, classes, {r});
      row_logsumexp.push_back(naive::cross_entropy(row, {targets[r]}, classes, kIgnored) + row[targets[r]]);
    }
    return first_of({difference("loss", loss.dtype(), values_of(loss),
                                {naive::cross_entropy(values_of(logits), targets, classes, kIgnored)}),
                     difference("logsumexp", logsumexp.dtype(), values_of(logsumexp), row_logsumexp)});
  });
}

KernelCall cross_entropy_backward(const Shape& shape, Operands operands) {
  const int64_t rows = shape[0], classes = shape[1];
  const Tensor logits = operands.uniform(shape, -4, 4), target = operands.indices(rows, classes);
  const Tensor logsumexp = operands.scratch_statistics({rows}), dlogits = operands.output(shape);
  const Tensor dloss = operands.uniform({1}, 1, 2);
  const Tensor loss = operands.scratch({1});
  run(ELWISE_KERNEL(cross_entropy_forward), cross_entropy(shape, logits, target, loss, logsumexp, operands),
      operands);
  const CrossEntropyBackward arguments{.dtype = operands.dtype(),
                                       .logits = logits.data(),
                                       .target = static_cast<const int64_t*>(target.data()),
                                       .logsumexp = logsumexp.data(),
                                       .dloss = dloss.data(),
                                       .dlogits = dlogits.data(),
                                       .rows = rows,
                                       .classes = classes,
                                       .ignore_index = kIgnored};
  return operands.call(ELWISE_KERNEL(cross_entropy_backward), arguments, [=] {
    return difference("dlogits", dlogits.dtype(), values_of(dlogits),
                      naive::cross_entropy_backward(values_of(logits), target.to_vector<int64_t>(), classes,
                                                    kIgnored, values_of(dloss)[0]));
  });
}

/// Of each column: the gradient of a bias.
KernelCall sum_forward(const Shape& shape, Operands operands) {
  const Tensor x = operands.uniform(shape), y = operands.output({shape[1]});
  const SumForward arguments{.dtype = operands.dtype(),
                             .x = x.data(),
                             .y = y.data(),
                             .outer = 1,
                             .reduced = shape[0],
                             .inner = shape[1]};
  return operands.call(ELWISE_KERNEL(sum_forward), arguments, [=] {
    return difference("y", y.dtype(), values_of(y), naive::sum(values_of(x), 1, shape[0], shape[1]));
  });
}

KernelCall cumsum(const Shape& shape, Operands operands) {
  const Tensor x = operands.uniform(shape), y = operands.output(shape);
  const Cumsum arguments{.dtype = operands.dtype(),
                         .x = x.data(),
                         .y = y.data(),
                         .outer = shape[0],
                         .length = shape[1],
                         .inner = shape[2],
                         .reverse = false};
  return operands.call(ELWISE_KERNEL(cumsum), arguments, [=] {
    return difference("y", y.dtype(), values_of(y),
                      naive::cumsum(values_of(x), shape[0], shape[1], shape[2], false));
  });
}

}  // namespace

std::vector<BenchCase> row_bench_cases() {
  using namespace std::placeholders;
  std::vector<BenchCase> cases;
  for (const int64_t rows : {512, 2048, 8192}) {
    const Shape shape{rows, 768};
    for (const bool residual : {false, true}) {
      cases.push_back(bench_case("layer_norm_forward", shape, residual ? "residual" : "",
                                 std::bind(layer_norm_forward, shape, residual, _1)));
      cases.push_back(bench_case("layer_norm_backward", shape, residual ? "residual" : "",
                                 std::bind(layer_norm_backward, shape, residual, _1)));
    }
  }
  const Shape logits{77, 30522};
  cases.push_back(
      bench_case("cross_entropy_forward", logits, "", std::bind(cross_entropy_forward, logits, _1)));
  cases.push_back(
      bench_case("cross_entropy_backward", logits, "", std::bind(cross_entropy_backward, logits, _1)));
  for (const Shape& shape : {Shape{512, 768}, Shape{512, 3072}, Shape{8192, 768}}) {
    cases.push_back(bench_case("sum_forward", shape, "rows", std::bind(sum_forward, shape, _1)));
  }
  const Shape sequences{4, 2048, 768};
  cases.push_back(bench_case("cumsum", sequences, "", std::bind(cumsum, sequences, _1)));
  return cases;
}

}  // namespace elwise::tools
