#include "ops/loss.h"

#include <algorithm>

#include "autograd/grad_mode.h"
#include "autograd/node.h"
#include "core/dispatch.h"
#include "ops/argument_checks.h"
#include "ops/elementwise.h"
#include "ops/loss_kernels.h"
#include "ops/reduce.h"
#include "ops/row_blocks.h"

namespace elwise {
namespace {

/// What a loss and its terms are: a mean over many elements has digits that bf16 does not.
TensorOptions sums_beside(const Tensor& x) {
  return {.dtype = accumulation_dtype(x.dtype()), .device = x.device()};
}

Tensor pointwise(const char* op, PointwiseLoss kind, const Tensor& x, const Tensor& target) {
  check_floating(op, "x", x);
  check_same_kind(op, "x", x, "target", target);
  check_shape(op, "target", target, x.shape());
  ELWISE_CHECK(x.count() > 0, op, ": expected at least one element, got ", x.shape());
  const Tensor loss = empty({}, sums_beside(x));
  ELWISE_DISPATCH(x.device(), pointwise_loss_forward,
                  {.dtype = x.dtype(),
                   .kind = kind,
                   .x = x.data(),
                   .target = target.data(),
                   .loss = loss.data(),
                   .count = x.count()});
  return record(
      op, {x, target}, loss,
      [kind, saved_x = SavedTensor(x), saved_target = SavedTensor(target)](const BackwardContext& context) {
        const Tensor &input = saved_x.get(), &wanted = saved_target.get();
        const Tensor dx = empty(input.shape(), input.options());
        ELWISE_DISPATCH(input.device(), pointwise_loss_backward,
                        {.dtype = input.dtype(),
                         .kind = kind,
                         .x = input.data(),
                         .target = wanted.data(),
                         .dloss = context.gradient().data(),
                         .dx = dx.data(),
                         .count = input.count()});
        return std::vector{dx, context.needs(1) ? neg(dx) : Tensor()};
      });
}

/// A target that is none: cross_entropy's kernels refuse all but the classes.
constexpr int64_t kNoneIgnored = -1;

/// The linear layer and the loss behind it, a block of rows at a time. The mean over all rows is that of the
/// blocks' means, each with its share of the rows.
struct LinearLoss {
  Tensor x, weight, bias, target, logsumexp;
  int64_t block_rows;

  int64_t rows() const { return x.size(0); }
  /// The part of `value`, of all rows' mean, that is due to `count` of the rows.
  Tensor share(const Tensor& value, int64_t count) const {
    return count == rows() ? value : mul(value, static_cast<double>(count) / static_cast<double>(rows()));
  }
  /// Room for the logits of one block.
  Tensor make_logits() const { return empty({std::min(block_rows, rows()), weight.size(0)}, x.options()); }

  void compute_logits(const Tensor& logits, int64_t begin, int64_t count) const {
    product_into(logits, rows_of(x, begin, count), false, weight, true, {.bias = bias});
  }

  /// The block's loss, with its logsumexp.
  Tensor forward(const Tensor& logits, int64_t begin, int64_t count) const {
    const Tensor loss = empty({}, logsumexp.options()), row_loss = empty({count}, logsumexp.options());
    const Tensor targets = rows_of(target, begin, count);
    ELWISE_DISPATCH(x.device(), cross_entropy_forward,
                    {.dtype = x.dtype(),
                     .logits = logits.data(),
                     .target = static_cast<const int64_t*>(targets.data()),
                     .loss = loss.data(),
                     .logsumexp = rows_of(logsumexp, begin, count).data(),
                     .row_loss = row_loss.data(),
                     .rows = count,
                     .classes = weight.size(0),
                     .ignore_index = kNoneIgnored});
    return loss;
  }

  /// The gradient of the block's loss takes the logits' place.
  void backward(const Tensor& logits, int64_t begin, int64_t count, const Tensor& dloss) const {
    const Tensor targets = rows_of(target, begin, count);
    ELWISE_DISPATCH(x.device(), cross_entropy_backward,
                    {.dtype = x.dtype(),
                     .logits = logits.data(),
                     .target = static_cast<const int64_t*>(targets.data()),
                     .logsumexp = rows_of(logsumexp, begin, count).data(),
                     .dloss = dloss.data(),
                     .dlogits = logits.data(),
                     .rows = count,
                     .classes = weight.size(0),
                     .ignore_index = kNoneIgnored});
  }
};

/// The gradient of linear_cross_entropy, and what it keeps for it.
struct LinearLossBackward {
  SavedTensor x, weight, bias, target, logsumexp;
  SavedTensor logits;  // where all of them are one block
  int64_t block_rows;

  std::vector<Tensor> operator()(const BackwardContext& context) const {
    const LinearLoss op{x.get(), weight.get(), bias.get(), target.get(), logsumexp.get(), block_rows};
    const Tensor kept = logits.get(), room = kept.defined() ? kept : op.make_logits();
    const Tensor dx = context.needs(0) ? empty(op.x.shape(), op.x.options()) : Tensor();
    ProductSum dweight(context.needs(1), context.sum_so_far(1), op.weight.shape(), op.weight.options());
    Tensor dbias;
    for_each_block(op.rows(), block_rows, [&](int64_t begin, int64_t count) {
      const Tensor block = rows_of(room, 0, count);
      if (!kept.defined()) op.compute_logits(block, begin, count);
      op.backward(block, begin, count, op.share(context.gradient(), count));
      if (context.needs(2)) add_block(dbias, sum(block, 0));
      dweight.add(block, rows_of(op.x, begin, count));
      if (dx.defined()) product_into(rows_of(dx, begin, count), block, false, op.weight, false);
    });
    return {dx, dweight.total(), dbias};
  }
};

}  // namespace

Tensor cross_entropy(const Tensor& logits, const Tensor& target, int64_t ignore_index) {
  check_floating("cross_entropy", "logits", logits);
  ELWISE_CHECK(logits.rank() == 2 && logits.size(1) > 0,
               "cross_entropy: expected logits [rows, classes], got ", logits.shape());
  check_index("cross_entropy", "target", target, logits);
  check_shape("cross_entropy", "target", target, {logits.size(0)});
  const int64_t rows = logits.size(0), classes = logits.size(1);
  const TensorOptions sums = sums_beside(logits);
  const Tensor loss = empty({}, sums), logsumexp = empty({rows}, sums), row_loss = empty({rows}, sums);
  ELWISE_DISPATCH(logits.device(), cross_entropy_forward,
                  {.dtype = logits.dtype(),
                   .logits = logits.data(),
                   .target = static_cast<const int64_t*>(target.data()),
                   .loss = loss.data(),
                   .logsumexp = logsumexp.data(),
                   .row_loss = row_loss.data(),
                   .rows = rows,
                   .classes = classes,
                   .ignore_index = ignore_index});
  return record(
      "cross_entropy", {logits}, loss,
      [rows, classes, ignore_index, saved_logits = SavedTensor(logits), saved_target = SavedTensor(target),
       saved_logsumexp = SavedTensor(logsumexp)](const BackwardContext& context) {
        const Tensor& x = saved_logits.get();
        const Tensor dlogits = empty(x.shape(), x.options());
        ELWISE_DISPATCH(x.device(), cross_entropy_backward,
                        {.dtype = x.dtype(),
                         .logits = x.data(),
                         .target = static_cast<const int64_t*>(saved_target.get().data()),
                         .logsumexp = saved_logsumexp.get().data(),
                         .dloss = context.gradient().data(),
                         .dlogits = dlogits.data(),
                         .rows = rows,
                         .classes = classes,
                         .ignore_index = ignore_index});
        return std::vector{dlogits};
      });
}

Tensor linear_cross_entropy(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& target,
                            int64_t most_logits) {
  constexpr const char* kOp = "linear_cross_entropy";
  check_floating(kOp, "x", x);
  ELWISE_CHECK(x.rank() == 2 && x.size(0) > 0, kOp, ": expected x [rows, inputs], got ", x.shape());
  check_linear(kOp, x, x.size(1), "weight", weight, "bias", bias);
  ELWISE_CHECK(weight.size(0) > 0, kOp, ": expected weight [classes, inputs], got ", weight.shape());
  check_index(kOp, "target", target, x);
  check_shape(kOp, "target", target, {x.size(0)});
  const int64_t row_bytes = weight.size(0) * size_of(x.dtype());
  const int64_t block_rows = std::max<int64_t>(1, most_logits / row_bytes);
  const LinearLoss op{x.detach(),
                      weight.detach(),
                      bias.defined() ? bias.detach() : bias,
                      target,
                      empty({x.size(0)}, sums_beside(x)),
                      block_rows};
  const Tensor logits = op.make_logits();
  Tensor loss;
  {
    const NoGradGuard unrecorded;
    for_each_block(op.rows(), block_rows, [&](int64_t begin, int64_t count) {
      const Tensor block = rows_of(logits, 0, count);
      op.compute_logits(block, begin, count);
      add_block(loss, op.share(op.forward(block, begin, count), count));
    });
  }
  return record(kOp, {x, weight, bias}, loss,
                LinearLossBackward{.x = SavedTensor(x),
                                   .weight = SavedTensor(weight),
                                   .bias = SavedTensor(bias),
                                   .target = SavedTensor(target),
                                   .logsumexp = SavedTensor(op.logsumexp),
                                   .logits = SavedTensor(op.rows() <= block_rows ? logits : Tensor()),
                                   .block_rows = block_rows});
}

Tensor mse_loss(const Tensor& x, const Tensor& target) {
  return pointwise("mse_loss", PointwiseLoss::mse, x, target);
}
Tensor l1_loss(const Tensor& x, const Tensor& target) {
  return pointwise("l1_loss", PointwiseLoss::l1, x, target);
}

}  // namespace elwise
