#pragma once

#include "core/cost.h"
#include "core/dtype.h"
#include "core/random.h"

namespace elwise {

/// Softmax attention that never holds the weights (tiles and a running maximum: Milakov & Gimelshein,
/// arXiv 1805.02867; Dao et al., arXiv 2205.14135). For each batch entry b and head h, over the keys j that
/// query i sees:
///   s_ij = scale q_i . k_j,  logsumexp_i = log sum_j exp(s_ij),  p_ij = exp(s_ij - logsumexp_i),
///   y_i = sum_j m_ij p_ij v_j.
/// With dropout m_ij = 1 / (1 - dropout_p) where uniform01(stream.word(n)) >= dropout_p, else 0, for n the
/// number of p_ij in [batch, heads, length, length]: as Dropout has it for weights in memory. Without, m_ij =
/// 1. A query that sees no key has y = 0 and logsumexp = +infinity, with which backward finds p_ij = 0.
/// A head is `channels / heads` adjacent channels of a row.
struct TiledAttentionForward {
  DType dtype;
  const void* q;    // [batch, length, channels]
  const void* k;    // [batch, length, channels]
  const void* v;    // [batch, length, channels]
  void* y;          // [batch, length, channels]
  void* logsumexp;  // [batch, heads, length], f32 beside bf16
  int64_t batch;
  int64_t length;
  int64_t channels;
  int64_t heads;
  double scale;  // positive
  bool causal;
  const bool* key_mask = nullptr;  // [batch, length], true = visible
  double dropout_p = 0;            // 0 <= dropout_p < 1
  RandomStream stream = {};

  KernelCost cost() const {
    const double rows = static_cast<double>(batch * length), bytes = static_cast<double>(size_of(dtype));
    const double n = rows * static_cast<double>(channels), weights = rows * static_cast<double>(heads);
    const double seen = static_cast<double>(length) * (causal ? 0.5 : 1);
    const auto sums = static_cast<double>(size_of(accumulation_dtype(dtype)));
    return {.flops = 4 * n * seen + 4 * weights * seen,
            .bytes_read = 3 * n * bytes,
            .bytes_written = n * bytes + weights * sums};
  }
};

/// The gradient, from the logsumexp alone; p_ij and m_ij are found anew:
///   delta_i = dy_i . y_i,  e_ij = p_ij (m_ij dy_i . v_j - delta_i),
///   dq_i = scale sum_j e_ij k_j,  dk_j = scale sum_i e_ij q_i,  dv_j = sum_i m_ij p_ij dy_i.
/// A key that no query sees has dk = dv = 0.
struct TiledAttentionBackward {
  DType dtype;
  const void* q;          // [batch, length, channels]
  const void* k;          // [batch, length, channels]
  const void* v;          // [batch, length, channels]
  const void* y;          // [batch, length, channels]
  const void* dy;         // [batch, length, channels]
  const void* logsumexp;  // [batch, heads, length], f32 beside bf16
  void* delta;            // like logsumexp: scratch that the CPU does without
  void* key_sums;         // f32 [2, batch, length, channels]: scratch of the CPU beside bf16, else null
  void* dq;               // [batch, length, channels]
  void* dk;               // [batch, length, channels]
  void* dv;               // [batch, length, channels]
  int64_t batch;
  int64_t length;
  int64_t channels;
  int64_t heads;
  double scale;  // positive
  bool causal;
  const bool* key_mask = nullptr;  // [batch, length], true = visible
  double dropout_p = 0;            // 0 <= dropout_p < 1
  RandomStream stream = {};

  KernelCost cost() const {
    const double rows = static_cast<double>(batch * length), bytes = static_cast<double>(size_of(dtype));
    const double n = rows * static_cast<double>(channels), weights = rows * static_cast<double>(heads);
    const double seen = static_cast<double>(length) * (causal ? 0.5 : 1);
    const auto sums = static_cast<double>(size_of(accumulation_dtype(dtype)));
    return {.flops = 10 * n * seen + 6 * weights * seen,
            .bytes_read = 5 * n * bytes + weights * sums,
            .bytes_written = 3 * n * bytes};
  }
};

namespace cpu {
void tiled_attention_forward(const TiledAttentionForward&);
void tiled_attention_backward(const TiledAttentionBackward&);
}  // namespace cpu
namespace cuda {
void tiled_attention_forward(const TiledAttentionForward&);
void tiled_attention_backward(const TiledAttentionBackward&);
}  // namespace cuda

}  // namespace elwise
