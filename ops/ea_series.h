#pragma once

#include "ops/attention_options.h"

namespace elwise {

/// EA-series of even order t (eq. 5 and 6 of arXiv 2501.05730; "EA-6" is t = 6), for each channel on its own:
/// exp(2 q k) in EA is replaced by its Taylor polynomial of degree t, so that y_i = sum_n c_n q_i^n S_n /
/// sum_n c_n q_i^n Z_n, c_n = 2^n / n!, with the moments S_n = sum_j exp(-k_j^2) k_j^n v_j and Z_n = sum_j
/// exp(-k_j^2) k_j^n over the visible keys. One fused, stable kernel each way; O(t length channels) time, and
/// memory that hardly grows with t: backward keeps q, k, v and the moments at every 128th row. q, k, v, y:
/// [batch, length, channels], f32, f64 or bf16. Differentiable. Throws Error unless order is even and in 0
/// .. 16.
Tensor ea_series(const Tensor& q, const Tensor& k, const Tensor& v, int order,
                 const AttentionOptions& options = {});

/// The same function written with public ops as in figure 2 of the paper: every moment is a tensor, nothing
/// is rescaled. An oracle and a baseline, not for training: exp(-k^2) underflows for large k, and a query
/// that sees no key is NaN.
Tensor ea_series_composed(const Tensor& q, const Tensor& k, const Tensor& v, int order,
                          const AttentionOptions& options = {});

/// What causal EA-series keeps of the keys so far (eq. 12 - 16): its moments, whatever their number. A key
/// weighs exp(r^2 - k^2), with r = kappa, the smallest |k| so far, where that is above 4, and 0 elsewhere.
/// f32 or f64. The three tensors are the whole state: to save and restore it is to save and restore them.
struct EaSeriesState {
  Tensor s;      // [batch, channels, order + 1]
  Tensor z;      // [batch, channels, order + 1]
  Tensor kappa;  // [batch, channels], infinite before the first key

  int order() const { return static_cast<int>(s.size(2)) - 1; }
  /// Of the elements: the same after any number of keys.
  int64_t bytes() const;
};

/// A state that has seen no key, for q, k and v of `options` (moments beside bf16 are f32).
EaSeriesState ea_series_state(int64_t batch, int64_t channels, int order, TensorOptions options = {});

/// Causal ea_series over q, k, v [batch, length, channels] that goes on from `state`, empty or not, and
/// leaves it behind the last visible key. key_mask: bool [batch, length], true = visible, or undefined;
/// hidden keys do not touch the state, so that prompts of different lengths make one batch. Not
/// differentiable: throws Error where a gradient would have to be recorded, and for a state that does not
/// fit.
Tensor ea_series_prefill(const Tensor& q, const Tensor& k, const Tensor& v, EaSeriesState& state,
                         const Tensor& key_mask = {});

/// One token more: adds the keys and answers the queries, q, k, v, y: [batch, channels], in one kernel, in
/// O(order channels) time whatever came before. Sums in f32 are rounded up or down with the probability that
/// keeps them right on average: nearest rounding would drift linearly with the steps where tokens repeat.
/// The "probability" is a hash of the operands: the same bits every time. Not differentiable, as prefill.
Tensor ea_series_step(const Tensor& q, const Tensor& k, const Tensor& v, EaSeriesState& state);

}  // namespace elwise
