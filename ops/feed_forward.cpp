#include "ops/feed_forward.h"

#include <algorithm>

#include "autograd/node.h"
#include "core/dispatch.h"
#include "ops/argument_checks.h"
#include "ops/dropout_kernels.h"
#include "ops/elementwise_kernels.h"
#include "ops/reduce.h"
#include "ops/row_blocks.h"

namespace elwise {
namespace {

/// Rows that go through the network at once: enough for a GPU's products, and a multiple of 4, so that each
/// block's dropout starts at a counter of its own.
constexpr int64_t kBlockRows = 2048;

/// What lies between the two products.
struct Activation {
  double dropout;
  RandomStream stream;

  /// The dropout of rows from `begin` on, in place; forward and backward are the same map.
  void drop(const Tensor& block, int64_t begin) const {
    if (dropout == 0) return;
    const auto first = static_cast<uint64_t>(begin * block.size(1));
    ELWISE_DISPATCH(block.device(), dropout,
                    {.dtype = block.dtype(),
                     .x = block.data(),
                     .y = block.data(),
                     .count = block.count(),
                     .p = dropout,
                     .stream = {stream.seed, stream.offset + first / 4}});
  }

  /// y = dropout(gelu(x)); y may be x.
  void forward(const Tensor& x, const Tensor& y, int64_t begin) const {
    ELWISE_DISPATCH(
        x.device(), unary_forward,
        {.dtype = x.dtype(), .op = UnaryOp::gelu, .x = x.data(), .y = y.data(), .count = x.count()});
    drop(y, begin);
  }

  /// The gradient of y becomes that of x, in place.
  void backward(const Tensor& x, const Tensor& gradient, int64_t begin) const {
    drop(gradient, begin);
    ELWISE_DISPATCH(x.device(), unary_backward,
                    {.dtype = x.dtype(),
                     .op = UnaryOp::gelu,
                     .saved = x.data(),
                     .dy = gradient.data(),
                     .dx = gradient.data(),
                     .count = x.count()});
  }
};

/// The op's gradient, and what it keeps for it.
struct Backward {
  Activation activation;
  SavedTensor saved_x;
  SavedTensor saved_inner;  // GELU's input, undefined where it is computed again
  SavedTensor saved_inner_weight;
  SavedTensor saved_inner_bias;
  SavedTensor saved_outer_weight;

  std::vector<Tensor> operator()(const BackwardContext& context) const;
};

std::vector<Tensor> Backward::operator()(const BackwardContext& context) const {
  const Tensor &x = saved_x.get(), &w1 = saved_inner_weight.get(), &w2 = saved_outer_weight.get();
  const TensorOptions made = x.options();
  const int64_t rows = x.shape().count_before(-1);
  const Tensor input = x.alias({rows, x.size(-1)}), dy = context.gradient().alias({rows, w2.size(0)});
  const Tensor sum_of_dx = context.sum_so_far(0);
  Tensor dx, inner_dbias, outer_dbias;
  if (context.needs(0)) dx = sum_of_dx.defined() ? sum_of_dx : empty(x.shape(), made);
  if (context.needs(4)) outer_dbias = sum(dy, 0);
  ProductSum inner_dweight(context.needs(1), context.sum_so_far(1), w1.shape(), made);
  ProductSum outer_dweight(context.needs(3), context.sum_so_far(3), w2.shape(), made);

  const Shape block_shape{std::min(rows, kBlockRows), w1.size(0)};
  const Tensor scratch = empty(block_shape, made);  // GELU's output, then the gradient of its input
  const Tensor again = saved_inner.get().defined() ? Tensor() : empty(block_shape, made);
  for_each_block(rows, kBlockRows, [&](int64_t begin, int64_t count) {
    const Tensor x_rows = rows_of(input, begin, count), dy_rows = rows_of(dy, begin, count);
    const Tensor work = rows_of(scratch, 0, count);
    const Tensor h = again.defined() ? rows_of(again, 0, count) : rows_of(saved_inner.get(), begin, count);
    if (again.defined()) product_into(h, x_rows, false, w1, true, {.bias = saved_inner_bias.get()});
    if (context.needs(3)) {
      activation.forward(h, work, begin);
      outer_dweight.add(dy_rows, work);
    }
    if (!dx.defined() && !context.needs(1) && !context.needs(2)) return;
    product_into(work, dy_rows, false, w2, false);
    activation.backward(h, work, begin);
    inner_dweight.add(work, x_rows);
    if (context.needs(2)) add_block(inner_dbias, sum(work, 0));
    if (dx.defined()) {
      const Tensor dx_rows = rows_of(dx.alias(input.shape()), begin, count);
      product_into(dx_rows, work, false, w1, false, {.accumulate = sum_of_dx.defined()});
    }
  });
  return {dx, inner_dweight.total(), inner_dbias, outer_dweight.total(), outer_dbias};
}

}  // namespace

Tensor feed_forward(const Tensor& x, const Tensor& inner_weight, const Tensor& inner_bias,
                    const Tensor& outer_weight, const Tensor& outer_bias, const FeedForwardOptions& options,
                    Generator& generator) {
  check_floating("feed_forward", "x", x);
  ELWISE_CHECK(x.rank() >= 1, "feed_forward: expected x [.., inputs], got ", x.shape());
  const int64_t rows = x.shape().count_before(-1), inputs = x.size(-1);
  check_linear("feed_forward", x, inputs, "inner_weight", inner_weight, "inner_bias", inner_bias);
  const int64_t inner = inner_weight.size(0);
  check_linear("feed_forward", x, inner, "outer_weight", outer_weight, "outer_bias", outer_bias);
  const int64_t outputs = outer_weight.size(0);
  ELWISE_CHECK(options.dropout >= 0 && options.dropout < 1, "feed_forward: expected 0 <= dropout < 1, got ",
               options.dropout);
  const auto words = static_cast<uint64_t>(options.dropout > 0 ? rows * inner : 0);
  const Activation activation{options.dropout, generator.reserve(words)};

  const std::vector<Tensor> inputs_of_op{x, inner_weight, inner_bias, outer_weight, outer_bias};
  const bool keeps = options.keep_inner && needs_gradient(inputs_of_op);
  const Tensor y = empty(x.shape().with(-1, outputs), x.options());
  const Tensor kept = keeps ? empty({rows, inner}, x.options()) : Tensor();
  const Tensor scratch = empty({std::min(rows, kBlockRows), inner}, x.options());
  const Tensor input = x.alias({rows, inputs}), output = y.alias({rows, outputs});
  for_each_block(rows, kBlockRows, [&](int64_t begin, int64_t count) {
    const Tensor active = rows_of(scratch, 0, count), h = keeps ? rows_of(kept, begin, count) : active;
    product_into(h, rows_of(input, begin, count), false, inner_weight, true, {.bias = inner_bias});
    activation.forward(h, active, begin);
    product_into(rows_of(output, begin, count), active, false, outer_weight, true, {.bias = outer_bias});
  });
  return record("feed_forward", inputs_of_op, y,
                Backward{.activation = activation,
                         .saved_x = SavedTensor(x),
                         .saved_inner = SavedTensor(kept),
                         .saved_inner_weight = SavedTensor(inner_weight),
                         .saved_inner_bias = SavedTensor(inner_bias),
                         .saved_outer_weight = SavedTensor(outer_weight)});
}

}  // namespace elwise
