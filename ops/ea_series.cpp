#include "ops/ea_series.h"

#include <limits>

#include "autograd/node.h"
#include "core/dispatch.h"
#include "ops/argument_checks.h"
#include "ops/cumsum.h"
#include "ops/ea_series_kernels.h"
#include "ops/elementwise.h"
#include "ops/reduce.h"
#include "ops/view.h"

namespace elwise {
namespace {

void check_order(const char* op, int order) {
  ELWISE_CHECK(order >= 0 && order <= kEaSeriesMaxOrder && order % 2 == 0, op,
               ": expected an even order in 0 .. ", kEaSeriesMaxOrder, ", got ", order,
               " (the polynomial of an odd order is not positive)");
}

/// The order of a state for q, k, v. Throws Error unless it fits them and nothing is to be recorded.
int check_state(const char* op, const Tensor& q, const Tensor& k, const Tensor& v,
                const EaSeriesState& state) {
  check_not_recorded(op, {q, k, v});
  ELWISE_CHECK(state.s.defined() && state.z.defined() && state.kappa.defined() && state.s.rank() == 3, op,
               ": expected a state made by ea_series_state");
  const int order = state.order();
  check_order(op, order);
  const int64_t batch = q.size(0), channels = q.size(-1);
  check_shape(op, "s", state.s, {batch, channels, order + 1});
  check_shape(op, "z", state.z, state.s.shape());
  check_shape(op, "kappa", state.kappa, {batch, channels});
  check_statistics(op, "s", state.s, q);
  check_statistics(op, "z", state.z, q);
  check_statistics(op, "kappa", state.kappa, q);
  return order;
}

EaSeriesStatePointers pointers_of(const EaSeriesState& state) {
  return {.s = state.s.data(), .z = state.z.data(), .kappa = state.kappa.data()};
}

void mark_changed(const EaSeriesState& state) {
  for (const Tensor& tensor : {state.s, state.z, state.kappa}) tensor.storage()->bump_version();
}

}  // namespace

Tensor ea_series(const Tensor& q, const Tensor& k, const Tensor& v, int order,
                 const AttentionOptions& options) {
  check_order("ea_series", order);
  check_attention("ea_series", q, k, v, options);
  const int64_t batch = q.size(0), length = q.size(1), channels = q.size(2);
  const Tensor y = empty(q.shape(), q.options());
  const TensorOptions sums{.dtype = accumulation_dtype(q.dtype()), .device = q.device()};
  const Shape partials_shape{batch, ea_series_chunks(length), ea_series_carry_rows(order), channels};
  const Tensor carry = empty(partials_shape.with(1, ea_series_carries(length, options.causal)), sums);
  const Tensor partials = options.causal ? Tensor() : empty(partials_shape, sums);
  ELWISE_DISPATCH(q.device(), ea_series_forward,
                  {.dtype = q.dtype(),
                   .q = q.data(),
                   .k = k.data(),
                   .v = v.data(),
                   .y = y.data(),
                   .batch = batch,
                   .length = length,
                   .channels = channels,
                   .order = order,
                   .causal = options.causal,
                   .carry = carry.data(),
                   .key_mask = key_mask_data(options),
                   .partials = data_or_null(partials)});
  const auto backward = [order, sums, partials_shape, causal = options.causal,
                         saved_mask = SavedTensor(options.key_mask), saved_q = SavedTensor(q),
                         saved_k = SavedTensor(k), saved_v = SavedTensor(v),
                         saved_carry = SavedTensor(carry)](const BackwardContext& context) {
    const Tensor& query = saved_q.get();
    const Tensor dq = empty(query.shape(), query.options()), dk = empty(query.shape(), query.options()),
                 dv = empty(query.shape(), query.options());
    const Tensor gradient_sums = empty(partials_shape, sums);
    ELWISE_DISPATCH(query.device(), ea_series_backward,
                    {.dtype = query.dtype(),
                     .q = query.data(),
                     .k = saved_k.get().data(),
                     .v = saved_v.get().data(),
                     .dy = context.gradient().data(),
                     .carry = saved_carry.get().data(),
                     .partials = gradient_sums.data(),
                     .dq = dq.data(),
                     .dk = dk.data(),
                     .dv = dv.data(),
                     .batch = query.size(0),
                     .length = query.size(1),
                     .channels = query.size(2),
                     .order = order,
                     .causal = causal,
                     .key_mask = key_mask_data({.key_mask = saved_mask.get()})});
    return std::vector{dq, dk, dv};
  };
  return record("ea_series", {q, k, v}, y, backward);
}

int64_t EaSeriesState::bytes() const {
  return (s.count() + z.count() + kappa.count()) * size_of(s.dtype());
}

EaSeriesState ea_series_state(int64_t batch, int64_t channels, int order, TensorOptions options) {
  check_order("ea_series_state", order);
  options.dtype = accumulation_dtype(options.dtype);
  const Shape moments{batch, channels, order + 1};
  return {.s = zeros(moments, options),
          .z = zeros(moments, options),
          .kappa = full({batch, channels}, std::numeric_limits<double>::infinity(), options)};
}

Tensor ea_series_prefill(const Tensor& q, const Tensor& k, const Tensor& v, EaSeriesState& state,
                         const Tensor& key_mask) {
  check_attention("ea_series_prefill", q, k, v, {.causal = true, .key_mask = key_mask});
  const int order = check_state("ea_series_prefill", q, k, v, state);
  const int64_t batch = q.size(0), length = q.size(1), channels = q.size(2);
  const Tensor y = empty(q.shape(), q.options());
  const Tensor carry =
      empty({batch, ea_series_chunks(length), ea_series_carry_rows(order), channels}, state.s.options());
  ELWISE_DISPATCH(q.device(), ea_series_forward,
                  {.dtype = q.dtype(),
                   .q = q.data(),
                   .k = k.data(),
                   .v = v.data(),
                   .y = y.data(),
                   .batch = batch,
                   .length = length,
                   .channels = channels,
                   .order = order,
                   .causal = true,
                   .carry = carry.data(),
                   .key_mask = key_mask_data({.key_mask = key_mask}),
                   .state = pointers_of(state)});
  mark_changed(state);
  return y;
}

Tensor ea_series_step(const Tensor& q, const Tensor& k, const Tensor& v, EaSeriesState& state) {
  check_attention_step("ea_series_step", q, k, v);
  const int order = check_state("ea_series_step", q, k, v, state);
  const Tensor y = empty(q.shape(), q.options());
  ELWISE_DISPATCH(q.device(), ea_series_step,
                  {.dtype = q.dtype(),
                   .q = q.data(),
                   .k = k.data(),
                   .v = v.data(),
                   .y = y.data(),
                   .state = pointers_of(state),
                   .batch = q.size(0),
                   .channels = q.size(1),
                   .order = order});
  mark_changed(state);
  return y;
}

Tensor ea_series_composed(const Tensor& q, const Tensor& k, const Tensor& v, int order,
                          const AttentionOptions& options) {
  check_order("ea_series_composed", order);
  check_attention("ea_series_composed", q, k, v, options);
  const auto accumulated = [&](const Tensor& terms) {
    return options.causal ? cumsum(terms, 1) : sum(terms, 1, /*keep_dim=*/true);
  };
  Tensor weight = exp(neg(mul(k, k)));
  if (options.key_mask.defined()) {
    weight = where(reshape(options.key_mask, {q.size(0), q.size(1), 1}), weight, zeros({}, q.options()));
  }
  Tensor numerator, denominator;
  double coefficient = 1;
  for (int n = 0; n <= order; ++n) {
    const Tensor key_power = mul(weight, pow(k, n));
    const Tensor query_power = mul(pow(q, n), coefficient);
    const Tensor s = mul(query_power, accumulated(mul(key_power, v)));
    const Tensor z = mul(query_power, accumulated(key_power));
    numerator = n == 0 ? s : add(numerator, s);
    denominator = n == 0 ? z : add(denominator, z);
    coefficient *= 2.0 / (n + 1);
  }
  return div(numerator, denominator);
}

}  // namespace elwise
