#include "ops/attention_options.h"

#include "autograd/node.h"
#include "ops/argument_checks.h"

namespace elwise {

void check_attention(const char* op, const Tensor& q, const Tensor& k, const Tensor& v,
                     const AttentionOptions& options) {
  check_floating(op, "q", q);
  ELWISE_CHECK(q.rank() == 3, op, ": expected q [batch, length, channels], got ", q.shape());
  check_same_kind(op, "q", q, "k", k);
  check_same_kind(op, "q", q, "v", v);
  check_shape(op, "k", k, q.shape());
  check_shape(op, "v", v, q.shape());
  const Tensor& mask = options.key_mask;
  if (!mask.defined()) return;
  ELWISE_CHECK(mask.dtype() == DType::boolean && mask.device() == q.device(), op,
               ": expected key_mask of bool on ", q.device(), ", got ", mask.dtype(), " on ", mask.device());
  check_shape(op, "key_mask", mask, {q.size(0), q.size(1)});
}

void check_attention_step(const char* op, const Tensor& q, const Tensor& k, const Tensor& v) {
  check_floating(op, "q", q);
  ELWISE_CHECK(q.rank() == 2, op, ": expected q [batch, channels], got ", q.shape());
  check_same_kind(op, "q", q, "k", k);
  check_same_kind(op, "q", q, "v", v);
  check_shape(op, "k", k, q.shape());
  check_shape(op, "v", v, q.shape());
}

void check_not_recorded(const char* op, const std::vector<Tensor>& inputs) {
  ELWISE_CHECK(!needs_gradient(inputs), op,
               ": has no gradient, but an input requires one (call it under NoGradGuard)");
}

}  // namespace elwise
