#pragma once

#include "ops/attention_options.h"

namespace elwise {

/// EA-series of even order t (eq. 5 and 6 of arXiv 2501.05730; "EA-6" is t = 6), for each channel on its own:
/// exp(2 q k) in EA is replaced by its Taylor polynomial of degree t, so that y_i = sum_n c_n q_i^n S_n /
/// sum_n c_n q_i^n Z_n, c_n = 2^n / n!, with the moments S_n = sum_j exp(-k_j^2) k_j^n v_j and Z_n = sum_j
/// exp(-k_j^2) k_j^n over the visible keys. One fused, stable kernel each way; O(t length channels) time, and
/// memory that hardly grows with t: backward keeps q, k, v and the moments at every 128th row. q, k, v, y:
/// [batch, length, channels], f32 or f64. Differentiable. Throws Error unless order is even and in 0 .. 16.
Tensor ea_series(const Tensor& q, const Tensor& k, const Tensor& v, int order,
                 const AttentionOptions& options = {});

/// The same function written with public ops as in figure 2 of the paper: every moment is a tensor, nothing
/// is rescaled. An oracle and a baseline, not for training: exp(-k^2) underflows for large k, and a query
/// that sees no key is NaN.
Tensor ea_series_composed(const Tensor& q, const Tensor& k, const Tensor& v, int order,
                          const AttentionOptions& options = {});

}  // namespace elwise
