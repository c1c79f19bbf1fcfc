#include "ops/softmax_attention.h"

#include <cmath>

#include "autograd/node.h"
#include "core/dispatch.h"
#include "ops/argument_checks.h"
#include "ops/dropout_kernels.h"
#include "ops/matmul_run.h"
#include "ops/softmax_kernels.h"
#include "ops/tiled_attention_kernels.h"

namespace elwise {
namespace {

/// The sizes of a batch of heads, and the products between what is laid out by token ([batch, length,
/// channels], the heads side by side) and by weight ([batch, heads, length, length]).
struct Heads {
  int64_t batch, length, channels, heads;

  int64_t head() const { return channels / heads; }
  Shape weight_shape() const { return {batch, heads, length, length}; }

  /// weights = scale * x y^T per head, x and y by token.
  void weights_from_tokens(const Tensor& x, const Tensor& y, const Tensor& weights, double scale) const {
    run_matmul(x.device(), {.dtype = x.dtype(),
                            .a = x.data(),
                            .b = y.data(),
                            .c = weights.data(),
                            .m = length,
                            .n = length,
                            .k = head(),
                            .lda = channels,
                            .ldb = channels,
                            .ldc = length,
                            .transpose_a = false,
                            .transpose_b = true,
                            .workspace = nullptr,
                            .outer = batch,
                            .inner = heads,
                            .a_outer = length * channels,
                            .a_inner = head(),
                            .b_outer = length * channels,
                            .b_inner = head(),
                            .c_outer = heads * length * length,
                            .c_inner = length * length,
                            .scale = scale});
  }

  /// result = scale * op(weights) x per head, x and result by token.
  Tensor tokens_from_weights(const Tensor& weights, bool transpose, const Tensor& x, double scale = 1) const {
    const Tensor result = empty(x.shape(), x.options());
    run_matmul(x.device(), {.dtype = x.dtype(),
                            .a = weights.data(),
                            .b = x.data(),
                            .c = result.data(),
                            .m = length,
                            .n = head(),
                            .k = length,
                            .lda = length,
                            .ldb = channels,
                            .ldc = channels,
                            .transpose_a = transpose,
                            .transpose_b = false,
                            .workspace = nullptr,
                            .outer = batch,
                            .inner = heads,
                            .a_outer = heads * length * length,
                            .a_inner = length * length,
                            .b_outer = length * channels,
                            .b_inner = head(),
                            .c_outer = length * channels,
                            .c_inner = head(),
                            .scale = scale});
    return result;
  }
};

/// y = dropout of x; y may be x.
void drop(const Tensor& x, const Tensor& y, double p, RandomStream stream) {
  ELWISE_DISPATCH(
      x.device(), dropout,
      {.dtype = x.dtype(), .x = x.data(), .y = y.data(), .count = x.count(), .p = p, .stream = stream});
}

void check_arguments(const char* op, const Tensor& q, const Tensor& k, const Tensor& v, int64_t heads,
                     const AttentionOptions& options, double dropout_p) {
  check_attention(op, q, k, v, options);
  ELWISE_CHECK(heads > 0 && q.size(2) % heads == 0, op, ": expected heads that divide ", q.size(2),
               " channels, got ", heads);
  ELWISE_CHECK(dropout_p >= 0 && dropout_p < 1, op, ": expected 0 <= dropout_p < 1, got ", dropout_p);
}

}  // namespace

Tensor softmax_attention(const Tensor& q, const Tensor& k, const Tensor& v, int64_t heads,
                         const AttentionOptions& options, double dropout_p, Generator& generator) {
  check_arguments("softmax_attention", q, k, v, heads, options, dropout_p);
  const Heads layout{.batch = q.size(0), .length = q.size(1), .channels = q.size(2), .heads = heads};
  const double scale = 1 / std::sqrt(static_cast<double>(layout.head()));
  const int64_t rows = layout.batch * heads * layout.length;

  const Tensor weights = empty(layout.weight_shape(), q.options());
  layout.weights_from_tokens(q, k, weights, scale);
  ELWISE_DISPATCH(q.device(), softmax_forward,
                  {.dtype = q.dtype(),
                   .x = weights.data(),
                   .y = weights.data(),
                   .rows = rows,
                   .cols = layout.length,
                   .batch = layout.batch,
                   .queries = layout.length,
                   .key_mask = key_mask_data(options),
                   .causal = options.causal});
  Tensor dropped = weights;
  RandomStream stream;
  if (dropout_p > 0) {
    stream = generator.reserve(static_cast<uint64_t>(weights.count()));
    dropped = empty(weights.shape(), weights.options());
    drop(weights, dropped, dropout_p, stream);
  }
  const Tensor y = layout.tokens_from_weights(dropped, false, v);

  const auto backward = [layout, scale, rows, dropout_p, stream, saved_q = SavedTensor(q),
                         saved_k = SavedTensor(k), saved_v = SavedTensor(v),
                         saved_weights = SavedTensor(weights),
                         saved_dropped = SavedTensor(dropped)](const BackwardContext& context) {
    const Tensor &dy = context.gradient(), &kept = saved_weights.get();
    const Tensor dv = layout.tokens_from_weights(saved_dropped.get(), true, dy);
    const Tensor dweights = empty(kept.shape(), kept.options());
    layout.weights_from_tokens(dy, saved_v.get(), dweights, 1);
    if (dropout_p > 0) drop(dweights, dweights, dropout_p, stream);
    ELWISE_DISPATCH(dy.device(), softmax_backward,
                    {.dtype = dy.dtype(),
                     .y = kept.data(),
                     .dy = dweights.data(),
                     .dx = dweights.data(),
                     .rows = rows,
                     .cols = layout.length});
    const Tensor dq = layout.tokens_from_weights(dweights, false, saved_k.get(), scale);
    const Tensor dk = layout.tokens_from_weights(dweights, true, saved_q.get(), scale);
    return std::vector{dq, dk, dv};
  };
  return record("softmax_attention", {q, k, v}, y, backward);
}

Tensor softmax_attention_tiled(const Tensor& q, const Tensor& k, const Tensor& v, int64_t heads,
                               const AttentionOptions& options, double dropout_p, Generator& generator) {
  check_arguments("softmax_attention_tiled", q, k, v, heads, options, dropout_p);
  const Tensor y = empty(q.shape(), q.options());
  const Tensor logsumexp =
      empty({q.size(0), heads, q.size(1)}, {.dtype = accumulation_dtype(q.dtype()), .device = q.device()});
  TiledAttentionForward forward{.dtype = q.dtype(),
                                .q = q.data(),
                                .k = k.data(),
                                .v = v.data(),
                                .y = y.data(),
                                .logsumexp = logsumexp.data(),
                                .batch = q.size(0),
                                .length = q.size(1),
                                .channels = q.size(2),
                                .heads = heads,
                                .scale = 1 / std::sqrt(static_cast<double>(q.size(2) / heads)),
                                .causal = options.causal,
                                .key_mask = key_mask_data(options),
                                .dropout_p = dropout_p};
  if (dropout_p > 0) forward.stream = generator.reserve(static_cast<uint64_t>(logsumexp.count() * q.size(1)));
  ELWISE_DISPATCH(q.device(), tiled_attention_forward, (forward));
  const auto backward = [forward, saved_q = SavedTensor(q), saved_k = SavedTensor(k),
                         saved_v = SavedTensor(v), saved_mask = SavedTensor(options.key_mask),
                         saved_y = SavedTensor(y),
                         saved_logsumexp = SavedTensor(logsumexp)](const BackwardContext& context) {
    const Tensor &query = saved_q.get(), &sums = saved_logsumexp.get();
    const Tensor dq = empty(query.shape(), query.options()), dk = empty(query.shape(), query.options()),
                 dv = empty(query.shape(), query.options()), delta = empty(sums.shape(), sums.options());
    Tensor key_sums;
    if (query.dtype() == DType::bf16 && query.device().type != DeviceType::cuda) {
      key_sums = empty({2, forward.batch, forward.length, forward.channels}, sums.options());
    }
    ELWISE_DISPATCH(query.device(), tiled_attention_backward,
                    {.dtype = forward.dtype,
                     .q = query.data(),
                     .k = saved_k.get().data(),
                     .v = saved_v.get().data(),
                     .y = saved_y.get().data(),
                     .dy = context.gradient().data(),
                     .logsumexp = sums.data(),
                     .delta = delta.data(),
                     .key_sums = data_or_null(key_sums),
                     .dq = dq.data(),
                     .dk = dk.data(),
                     .dv = dv.data(),
                     .batch = forward.batch,
                     .length = forward.length,
                     .channels = forward.channels,
                     .heads = forward.heads,
                     .scale = forward.scale,
                     .causal = forward.causal,
                     .key_mask = key_mask_data({.key_mask = saved_mask.get()}),
                     .dropout_p = forward.dropout_p,
                     .stream = forward.stream});
    return std::vector{dq, dk, dv};
  };
  return record("softmax_attention_tiled", {q, k, v}, y, backward);
}

}  // namespace elwise
