#include "ops/loss.h"

#include "autograd/node.h"
#include "core/dispatch.h"
#include "ops/argument_checks.h"
#include "ops/elementwise.h"
#include "ops/loss_kernels.h"

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

Tensor mse_loss(const Tensor& x, const Tensor& target) {
  return pointwise("mse_loss", PointwiseLoss::mse, x, target);
}
Tensor l1_loss(const Tensor& x, const Tensor& target) {
  return pointwise("l1_loss", PointwiseLoss::l1, x, target);
}

}  // namespace elwise
