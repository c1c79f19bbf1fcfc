#pragma once

#include "core/cost.h"
#include "core/dtype.h"

namespace elwise {

/// Where the nearest visible key is farther than this from a query, the weights are taken relative to it.
inline constexpr double kEaNear = 3;

/// Full element-wise attention (eq. 2 of arXiv 2501.05730), channel by channel:
/// y_i = sum_j w_ij v_j / sum_j w_ij with w_ij = exp((q_i - r_i)^2 - (q_i - k_j)^2) over the visible keys j
/// (j <= i when causal). The reference r_i cancels in y_i: it is q_i where a visible key lies within kEaNear
/// of it, else the nearest visible key, so that the sum lies in [exp(-kEaNear^2), length], however far the
/// keys. As the exponent is (k_j - r_i) ((q_i - r_i) + (q_i - k_j)), large squares are never subtracted. A
/// query that sees no key has y = 0 and denominator = 0.
struct EaForward {
  DType dtype;
  const void* q;      // [batch, length, channels]
  const void* k;      // [batch, length, channels]
  const void* v;      // [batch, length, channels]
  void* y;            // [batch, length, channels]
  void* denominator;  // [batch, length, channels], f32 beside bf16: sum_j w_ij
  int64_t batch;
  int64_t length;
  int64_t channels;
  bool causal;
  const bool* key_mask = nullptr;  // [batch, length], true = visible

  KernelCost cost() const {
    const double n = static_cast<double>(batch * length * channels),
                 bytes = n * static_cast<double>(size_of(dtype));
    const double pairs = n * static_cast<double>(length) * (causal ? 0.5 : 1);
    return {.flops = 6 * pairs,
            .bytes_read = 3 * bytes,
            .bytes_written = bytes + n * static_cast<double>(size_of(accumulation_dtype(dtype)))};
  }
};

/// With p_ij = w_ij / denominator_i and e_ij = p_ij dy_i (v_j - y_i): dv_j = sum_i p_ij dy_i,
/// dk_j = 2 sum_i e_ij (q_i - k_j),  dq_i = -2 sum_j e_ij (q_i - k_j) = 2 sum_j e_ij (k_j - r_i), as
/// sum_j e_ij = 0; the latter keeps its digits where q_i is far. The references r_i are found anew.
struct EaBackward {
  DType dtype;
  const void* q;  // all [batch, length, channels]
  const void* k;
  const void* v;
  const void* y;
  const void* denominator;  // f32 beside bf16
  const void* dy;
  void* dq;
  void* dk;
  void* dv;
  int64_t batch;
  int64_t length;
  int64_t channels;
  bool causal;
  const bool* key_mask = nullptr;  // [batch, length], true = visible

  KernelCost cost() const {
    const double n = static_cast<double>(batch * length * channels),
                 bytes = n * static_cast<double>(size_of(dtype));
    const double pairs = n * static_cast<double>(length) * (causal ? 0.5 : 1);
    return {.flops = 14 * pairs,
            .bytes_read = 5 * bytes + n * static_cast<double>(size_of(accumulation_dtype(dtype))),
            .bytes_written = 3 * bytes};
  }
};

namespace cpu {
void ea_forward(const EaForward&);
void ea_backward(const EaBackward&);
}  // namespace cpu
namespace cuda {
void ea_forward(const EaForward&);
void ea_backward(const EaBackward&);
}  // namespace cuda

}  // namespace elwise
