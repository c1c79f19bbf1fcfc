#pragma once

#include "core/tensor.h"

// Generation, one token at a time, with the mechanisms other than EA-series (whose steps are in
// ops/ea_series.h). q, k, v and y of a step: [batch, channels], f32, f64 or bf16; it adds the keys, then
// answers the queries. Nothing here is differentiable: each throws Error, naming itself, where a gradient
// would have to be recorded, and for arguments that do not fit.

namespace elwise {

/// The keys and values of the tokens so far.
struct KeyValueCache {
  Tensor k, v;          // [batch, capacity, channels]: entry b holds rows 0 .. lengths[b] - 1
  Tensor lengths;       // i64 [batch]
  int64_t longest = 0;  // no length is above it: known without a look at `lengths`; at most the capacity

  /// Of the elements, with those that are not in use yet.
  int64_t bytes() const;
};

/// An empty cache.
KeyValueCache key_value_cache(int64_t batch, int64_t channels, TensorOptions options = {});

/// Adds k and v [batch, length, channels] behind what the entries hold. key_mask: bool [batch, length], true
/// = visible, or undefined; hidden keys are left out, so that prompts of different lengths make one batch.
/// The cache grows in blocks of 256 rows.
void append(KeyValueCache& cache, const Tensor& k, const Tensor& v, const Tensor& key_mask = {});

/// Softmax attention of one query over the cache (eq. 17 of arXiv 2501.05730), per head, scaled by 1 /
/// sqrt(head): one pass over it. A prompt is answered by softmax_attention and appended. Throws Error unless
/// heads divides channels.
Tensor softmax_attention_step(const Tensor& q, const Tensor& k, const Tensor& v, int64_t heads,
                              KeyValueCache& cache);

/// Element-wise attention of one query over the cache (eq. 2), as ea().
Tensor ea_step(const Tensor& q, const Tensor& k, const Tensor& v, KeyValueCache& cache);

/// The Attention Free Transformer's one query over the cache (eq. 19), as aft(). position_bias [positions,
/// positions]: a token's position is the number of keys before it, of which an entry's bias row is used.
Tensor aft_step(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& position_bias,
                KeyValueCache& cache);

/// What causal linear attention keeps of the keys so far, per head (eq. 18). f32 (beside bf16 too) or f64.
struct LinearAttentionState {
  Tensor s;  // [batch, heads, head, head]: sum_j phi(k_j) v_j^T
  Tensor z;  // [batch, heads, head]: sum_j phi(k_j)

  int64_t bytes() const;
};

/// A state that has seen no key. Throws Error unless heads divides channels.
LinearAttentionState linear_attention_state(int64_t batch, int64_t channels, int64_t heads,
                                            TensorOptions options = {});

/// Causal linear attention over q, k, v [batch, length, channels] that goes on from `state`, empty or not,
/// and leaves it behind the last visible key. In O(head) operations a channel: for prompts. Keys all of whose
/// features underflow (below -87 in f32) count for nothing, other than in linear_attention().
Tensor linear_attention_prefill(const Tensor& q, const Tensor& k, const Tensor& v,
                                LinearAttentionState& state, const Tensor& key_mask = {});

/// One token more.
Tensor linear_attention_step(const Tensor& q, const Tensor& k, const Tensor& v, LinearAttentionState& state);

}  // namespace elwise
