#include "ops/norm.h"

#include "autograd/node.h"
#include "core/dispatch.h"
#include "ops/argument_checks.h"
#include "ops/norm_kernels.h"

namespace elwise {
namespace {

/// Both forms: residual may be undefined, and `sum` is then x itself. `in_place`: x is overwritten.
AddLayerNormResult normalize(const char* op, const Tensor& x, const Tensor& residual, const Tensor& weight,
                             const Tensor& bias, double eps, bool in_place) {
  check_floating(op, "x", x);
  ELWISE_CHECK(x.rank() >= 1 && x.size(-1) > 0, op, ": expected x [.., cols], got ", x.shape());
  const int64_t cols = x.size(-1), rows = x.shape().count_before(-1);
  for (const auto& [name, parameter] : {std::pair{"weight", weight}, std::pair{"bias", bias}}) {
    if (!parameter.defined()) continue;
    check_same_kind(op, "x", x, name, parameter);
    check_shape(op, name, parameter, {cols});
  }
  const bool recorded = needs_gradient({x, residual, weight, bias});
  const Tensor y = in_place ? x.detach() : empty(x.shape(), x.options());
  const Tensor sum = residual.defined() ? empty(x.shape(), x.options()) : x;
  const TensorOptions statistics{.dtype = accumulation_dtype(x.dtype()), .device = x.device()};
  const Tensor mean = empty({rows}, statistics), rstd = empty({rows}, statistics);
  ELWISE_DISPATCH(x.device(), layer_norm_forward,
                  {.dtype = x.dtype(),
                   .x = x.data(),
                   .y = y.data(),
                   .mean = mean.data(),
                   .rstd = rstd.data(),
                   .rows = rows,
                   .cols = cols,
                   .eps = eps,
                   .residual = data_or_null(residual),
                   .sum = residual.defined() ? sum.data() : nullptr,
                   .weight = data_or_null(weight),
                   .bias = data_or_null(bias)});
  if (!recorded) return {y, sum};
  const auto backward = [rows, cols, has_sum = residual.defined(), saved_h = SavedTensor(sum),
                         saved_weight = SavedTensor(weight), saved_mean = SavedTensor(mean),
                         saved_rstd = SavedTensor(rstd)](const BackwardContext& context) {
    const Tensor &h = saved_h.get(), dy = context.take_gradient(0);
    const Tensor dsum = has_sum ? context.gradient(1) : Tensor();
    if (!dy.defined()) return std::vector{dsum, dsum, Tensor(), Tensor()};
    const Tensor dx = dy.is_unique() ? dy : empty(h.shape(), h.options());
    Tensor dweight, dbias, partials;
    if (context.needs(2)) dweight = empty({cols}, h.options());
    if (context.needs(3)) dbias = empty({cols}, h.options());
    if (context.needs(2) || context.needs(3))
      partials = empty({2, layer_norm_partials(rows), cols}, saved_mean.get().options());
    ELWISE_DISPATCH(h.device(), layer_norm_backward,
                    {.dtype = h.dtype(),
                     .h = h.data(),
                     .mean = saved_mean.get().data(),
                     .rstd = saved_rstd.get().data(),
                     .dy = dy.data(),
                     .dx = dx.data(),
                     .rows = rows,
                     .cols = cols,
                     .weight = data_or_null(saved_weight.get()),
                     .dsum = data_or_null(dsum),
                     .dweight = data_or_null(dweight),
                     .dbias = data_or_null(dbias),
                     .partials = data_or_null(partials)});
    return std::vector{dx, dx, dweight, dbias};
  };
  const std::vector<Tensor> outputs = residual.defined() ? std::vector{y, sum} : std::vector{y};
  record(op, {x, residual, weight, bias}, outputs, backward);
  return {y, sum};
}

}  // namespace

Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps) {
  return normalize("layer_norm", x, {}, weight, bias, eps, /*in_place=*/false).normalized;
}

AddLayerNormResult add_layer_norm(Tensor x, const Tensor& residual, const Tensor& weight, const Tensor& bias,
                                  double eps) {
  check_same_kind("add_layer_norm", "x", x, "residual", residual);
  check_shape("add_layer_norm", "residual", residual, x.shape());
  return normalize("add_layer_norm", x, residual, weight, bias, eps, /*in_place=*/x.is_unique());
}

}  // namespace elwise
