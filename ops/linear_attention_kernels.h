#pragma once

#include <algorithm>

#include "core/cost.h"
#include "core/dtype.h"

namespace elwise {

/// Queries with a denominator below this (all features that meet are nearly 0), or with an output that is not
/// finite, are answered key by key instead, relative to their largest term.
inline constexpr double kLinearAttentionLeast = 0x1p-60;

/// Where batch entries times heads are few, a sequence is cut in this many spans, which are summed, and then
/// answered, in parallel. It depends on shapes only, and so do all results.
constexpr int64_t linear_attention_spans(int64_t batch, int64_t length, int64_t heads) {
  constexpr int64_t kEnough = 8, kLeastRows = 256;
  const int64_t pairs = std::max<int64_t>(batch * heads, 1);
  const int64_t wanted = (kEnough + pairs - 1) / pairs, most = (length + kLeastRows - 1) / kLeastRows;
  return std::clamp<int64_t>(wanted, 1, std::max<int64_t>(most, 1));
}

/// States that forward keeps for each batch entry and head. Causal: those before every span but the first;
/// else the last one is the total.
constexpr int64_t linear_attention_states(int64_t batch, int64_t length, int64_t heads, bool causal) {
  return linear_attention_spans(batch, length, heads) - (causal ? 1 : 0);
}

/// Linear attention (eq. 18 of arXiv 2501.05730; Katharopoulos et al., arXiv 2006.16236), head by head. With
/// phi(x) = elu(x) + 1, S_i = sum_j phi(k_j) v_j^T and z_i = sum_j phi(k_j) over the visible keys j (j <= i
/// when causal): y_i = S_i^T phi(q_i) / (z_i . phi(q_i)). A query that sees no key has y = 0. A state is S
/// [head, head] and, as one more row, z [head].
struct LinearAttentionForward {
  DType dtype;
  const void* q;      // [batch, length, heads * head]
  const void* k;      // [batch, length, heads * head]
  const void* v;      // [batch, length, heads * head]
  void* y;            // [batch, length, heads * head]
  void* denominator;  // [batch, heads, length]: z_i . phi(q_i), 0 where kLinearAttentionLeast forbids it
  void* states;       // [batch, heads, linear_attention_states, head + 1, head]
  int64_t batch;
  int64_t length;
  int64_t heads;
  int64_t head;
  bool causal;
  const bool* key_mask = nullptr;  // [batch, length], true = visible

  KernelCost cost() const {
    const double n = static_cast<double>(batch * length * heads * head), width = static_cast<double>(head),
                 bytes = n * static_cast<double>(size_of(dtype));
    return {.flops = n * (4 * width + 8), .bytes_read = 3 * bytes, .bytes_written = bytes * (1 + 1 / width)};
  }
};

/// The gradient. With a_i = dy_i / denominator_i, b_i = -(dy_i . y_i) / denominator_i:
/// dphi(q_i) = S_i a_i + b_i z_i; and with A_j = sum_i a_i phi(q_i)^T, B_j = sum_i b_i phi(q_i) over the
/// queries i that see j: dv_j = A_j phi(k_j), dphi(k_j) = A_j^T v_j + B_j.
struct LinearAttentionBackward {
  DType dtype;
  const void* q;  // [batch, length, heads * head], as k, v, y, dy, dq, dk and dv
  const void* k;
  const void* v;
  const void* y;
  const void* dy;
  const void* denominator;  // [batch, heads, length]
  const void* states;       // [batch, heads, linear_attention_states, head + 1, head], of forward
  void* gradient_states;    // the same shape, scratch: A, and B as one more row
  void* dq;
  void* dk;
  void* dv;
  int64_t batch;
  int64_t length;
  int64_t heads;
  int64_t head;
  bool causal;
  const bool* key_mask = nullptr;  // [batch, length], true = visible

  KernelCost cost() const {
    const double n = static_cast<double>(batch * length * heads * head), width = static_cast<double>(head),
                 bytes = n * static_cast<double>(size_of(dtype));
    const double products = causal ? 10 : 8;  // S anew, or kept
    return {.flops = n * (products * width + 16),
            .bytes_read = bytes * (5 + 1 / width),
            .bytes_written = 3 * bytes};
  }
};

namespace cpu {
void linear_attention_forward(const LinearAttentionForward&);
void linear_attention_backward(const LinearAttentionBackward&);
}  // namespace cpu
namespace cuda {
void linear_attention_forward(const LinearAttentionForward&);
void linear_attention_backward(const LinearAttentionBackward&);
}  // namespace cuda

}  // namespace elwise
