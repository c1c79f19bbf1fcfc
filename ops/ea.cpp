#include "ops/ea.h"

#include "autograd/node.h"
#include "core/dispatch.h"
#include "ops/argument_checks.h"
#include "ops/ea_kernels.h"

namespace elwise {

Tensor ea(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionOptions& options) {
  check_attention("ea", q, k, v, options);
  const Tensor y = empty(q.shape(), q.options());
  const Tensor denominator = empty(q.shape(), {.dtype = accumulation_dtype(q.dtype()), .device = q.device()});
  ELWISE_DISPATCH(q.device(), ea_forward,
                  {.dtype = q.dtype(),
                   .q = q.data(),
                   .k = k.data(),
                   .v = v.data(),
                   .y = y.data(),
                   .denominator = denominator.data(),
                   .batch = q.size(0),
                   .length = q.size(1),
                   .channels = q.size(2),
                   .causal = options.causal,
                   .key_mask = key_mask_data(options)});
  const auto backward = [causal = options.causal, saved_mask = SavedTensor(options.key_mask),
                         saved_q = SavedTensor(q), saved_k = SavedTensor(k), saved_v = SavedTensor(v),
                         saved_y = SavedTensor(y),
                         saved_denominator = SavedTensor(denominator)](const BackwardContext& context) {
    const Tensor& query = saved_q.get();
    const Tensor dq = empty(query.shape(), query.options()), dk = empty(query.shape(), query.options()),
                 dv = empty(query.shape(), query.options());
    ELWISE_DISPATCH(query.device(), ea_backward,
                    {.dtype = query.dtype(),
                     .q = query.data(),
                     .k = saved_k.get().data(),
                     .v = saved_v.get().data(),
                     .y = saved_y.get().data(),
                     .denominator = saved_denominator.get().data(),
                     .dy = context.gradient().data(),
                     .dq = dq.data(),
                     .dk = dk.data(),
                     .dv = dv.data(),
                     .batch = query.size(0),
                     .length = query.size(1),
                     .channels = query.size(2),
                     .causal = causal,
                     .key_mask = key_mask_data({.key_mask = saved_mask.get()})});
    return std::vector{dq, dk, dv};
  };
  return record("ea", {q, k, v}, y, backward);
}

}  // namespace elwise
