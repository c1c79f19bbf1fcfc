#include "ops/linear_attention.h"

#include "autograd/node.h"
#include "core/dispatch.h"
#include "ops/argument_checks.h"
#include "ops/linear_attention_kernels.h"

namespace elwise {

Tensor linear_attention(const Tensor& q, const Tensor& k, const Tensor& v, int64_t heads,
                        const AttentionOptions& options) {
  check_attention("linear_attention", q, k, v, options);
  ELWISE_CHECK(heads > 0 && q.size(2) % heads == 0, "linear_attention: expected heads that divide ",
               q.size(2), " channels, got ", heads);
  const int64_t batch = q.size(0), length = q.size(1), head = q.size(2) / heads;
  const TensorOptions sums_options{.dtype = accumulation_dtype(q.dtype()), .device = q.device()};
  const Tensor y = empty(q.shape(), q.options()), denominator = empty({batch, heads, length}, sums_options);
  const Shape state_shape{batch, heads, linear_attention_states(batch, length, heads, options.causal),
                          head + 1, head};
  const Tensor states = empty(state_shape, sums_options);
  const Tensor sums =
      empty({batch, heads, linear_attention_chunks(length, head), head + 1, head}, sums_options);
  ELWISE_DISPATCH(q.device(), linear_attention_forward,
                  {.dtype = q.dtype(),
                   .q = q.data(),
                   .k = k.data(),
                   .v = v.data(),
                   .y = y.data(),
                   .denominator = denominator.data(),
                   .states = states.data(),
                   .sums = sums.data(),
                   .batch = batch,
                   .length = length,
                   .heads = heads,
                   .head = head,
                   .causal = options.causal,
                   .key_mask = key_mask_data(options)});
  const auto backward = [heads, causal = options.causal, saved_mask = SavedTensor(options.key_mask),
                         saved_q = SavedTensor(q), saved_k = SavedTensor(k), saved_v = SavedTensor(v),
                         saved_y = SavedTensor(y), saved_denominator = SavedTensor(denominator),
                         saved_states = SavedTensor(states)](const BackwardContext& context) {
    const Tensor &query = saved_q.get(), &states = saved_states.get(), &divisors = saved_denominator.get();
    const int64_t length = query.size(1), head = query.size(2) / heads;
    const Tensor dq = empty(query.shape(), query.options()), dk = empty(query.shape(), query.options()),
                 dv = empty(query.shape(), query.options()),
                 gradient_states = empty(states.shape(), states.options()),
                 sums = empty({query.size(0), heads, linear_attention_chunks(length, head), head + 1, head},
                              states.options()),
                 b = empty(divisors.shape(), divisors.options());
    ELWISE_DISPATCH(query.device(), linear_attention_backward,
                    {.dtype = query.dtype(),
                     .q = query.data(),
                     .k = saved_k.get().data(),
                     .v = saved_v.get().data(),
                     .y = saved_y.get().data(),
                     .dy = context.gradient().data(),
                     .denominator = divisors.data(),
                     .states = states.data(),
                     .gradient_states = gradient_states.data(),
                     .sums = sums.data(),
                     .b = b.data(),
                     .dq = dq.data(),
                     .dk = dk.data(),
                     .dv = dv.data(),
                     .batch = query.size(0),
                     .length = length,
                     .heads = heads,
                     .head = head,
                     .causal = causal,
                     .key_mask = key_mask_data({.key_mask = saved_mask.get()})});
    return std::vector{dq, dk, dv};
  };
  return record("linear_attention", {q, k, v}, y, backward);
}

}  // namespace elwise
