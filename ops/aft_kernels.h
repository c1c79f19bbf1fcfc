#pragma once

#include "core/cost.h"
#include "core/dtype.h"

namespace elwise {

// The Attention Free Transformer (Zhai et al., arXiv 2105.14103), channel by channel, around matrix products:
// with E_ij = softmax_j(w_ij) over the positions j (j <= i when causal) and K_j = exp(k_j), 0 where hidden,
// Z = E K, r = E (K v) / Z and y = sigmoid(q) r: the factors of a row of E cancel in r. A product has one
// column for each batch entry, channel, and v or 1: both operands are [length, batch, 2, channels].
//
// So scaled, no product overflows, and what underflows is negligible, as long as keys are at most
// kAftLargestKey and Z is at least kAftLeastSum. Other elements are answered directly, key by key, relative
// to their largest term; Z is 0 for them. Whether one is depends on nothing that its query does not see.
inline constexpr double kAftLargestKey = 30;
inline constexpr double kAftLeastSum = 0x1p-40;

/// What a direct answer reads.
struct AftDirect {
  const void* k;              // [batch, length, channels]
  const void* v;              // [batch, length, channels]
  const void* position_bias;  // [positions, positions]: w
  int64_t positions;
  bool causal;
  const bool* key_mask = nullptr;  // [batch, length], true = visible
};

/// The right operand: K v and K, both 0 for hidden keys and for those above kAftLargestKey.
struct AftKeys {
  DType dtype;
  const void* k;  // [batch, length, channels]
  const void* v;  // [batch, length, channels]
  void* keys;     // [length, batch, 2, channels]
  int64_t batch;
  int64_t length;
  int64_t channels;
  const bool* key_mask = nullptr;  // [batch, length], true = visible
  int64_t* first_large =
      nullptr;  // [batch, channels]: the first visible key above kAftLargestKey, or length; for AftOutputs

  KernelCost cost() const {
    const double n = static_cast<double>(batch * length * channels),
                 bytes = n * static_cast<double>(size_of(dtype));
    return {.flops = 2 * n, .bytes_read = 2 * bytes, .bytes_written = 2 * bytes};
  }
};

/// y from the product's result, in which r takes the place of E (K v). A query that sees no key has y = 0.
struct AftOutputs {
  DType dtype;
  const void* q;               // [batch, length, channels]
  const int64_t* first_large;  // [batch, channels]
  void* sums;                  // [length, batch, 2, channels]: E (K v) and Z on entry, then r and Z
  int64_t* direct_answers;     // [1]: 0 unless there is a direct answer
  void* y;                     // [batch, length, channels]
  int64_t batch;
  int64_t length;
  int64_t channels;
  AftDirect direct;

  KernelCost cost() const {
    const double n = static_cast<double>(batch * length * channels),
                 bytes = n * static_cast<double>(size_of(dtype));
    return {.flops = 5 * n, .bytes_read = 3 * bytes, .bytes_written = 3 * bytes};
  }
};

/// dq = dy r s (1 - s) with s = sigmoid(q); and with u = dy s, what the gradients of the products start from:
/// a = u / Z and b = -u r / Z, 0 for direct answers.
struct AftOutputGradients {
  DType dtype;
  const void* q;     // [batch, length, channels]
  const void* sums;  // [length, batch, 2, channels]: r and Z
  const void* dy;    // [batch, length, channels]
  void* dq;          // [batch, length, channels]
  void* gradients;   // [length, batch, 2, channels]: a and b
  int64_t batch;
  int64_t length;
  int64_t channels;

  KernelCost cost() const {
    const double n = static_cast<double>(batch * length * channels),
                 bytes = n * static_cast<double>(size_of(dtype));
    return {.flops = 10 * n, .bytes_read = 4 * bytes, .bytes_written = 3 * bytes};
  }
};

/// With A = E^T a and B = E^T b: dv = K A, dk = (K v) A + K B, and the part of the direct answers.
struct AftKeyGradients {
  DType dtype;
  const void* q;                  // [batch, length, channels]
  const void* sums;               // [length, batch, 2, channels]: r and Z
  const void* dy;                 // [batch, length, channels]
  const void* keys;               // [length, batch, 2, channels]: K v and K
  const void* key_sums;           // [length, batch, 2, channels]: A and B
  const int64_t* direct_answers;  // [1]
  void* dk;                       // [batch, length, channels]
  void* dv;                       // [batch, length, channels]
  int64_t batch;
  int64_t length;
  int64_t channels;
  AftDirect direct;

  KernelCost cost() const {
    const double n = static_cast<double>(batch * length * channels),
                 bytes = n * static_cast<double>(size_of(dtype));
    return {.flops = 4 * n, .bytes_read = 4 * bytes, .bytes_written = 2 * bytes};
  }
};

/// dw_ij = E_ij sum (a_i K_j v_j + b_i K_j) over batch entries and channels, and the part of the direct
/// answers; 0 for pairs of positions that do not meet.
struct AftBiasGradient {
  DType dtype;
  const void* q;                  // [batch, length, channels]
  const void* sums;               // [length, batch, 2, channels]: r and Z
  const void* dy;                 // [batch, length, channels]
  const void* weights;            // [length, length]: E
  const void* products;           // [length, length]: the sums; j > i is not read when causal
  const int64_t* direct_answers;  // [1]
  void* dw;                       // [positions, positions]
  int64_t batch;
  int64_t length;
  int64_t channels;
  AftDirect direct;

  KernelCost cost() const {
    const double pairs = static_cast<double>(length * length) * (direct.causal ? 0.5 : 1),
                 all = static_cast<double>(direct.positions * direct.positions),
                 size = static_cast<double>(size_of(dtype));
    return {.flops = pairs, .bytes_read = 2 * pairs * size, .bytes_written = all * size};
  }
};

namespace cpu {
void aft_keys(const AftKeys&);
void aft_outputs(const AftOutputs&);
void aft_output_gradients(const AftOutputGradients&);
void aft_key_gradients(const AftKeyGradients&);
void aft_bias_gradient(const AftBiasGradient&);
}  // namespace cpu
namespace cuda {
void aft_keys(const AftKeys&);
void aft_outputs(const AftOutputs&);
void aft_output_gradients(const AftOutputGradients&);
void aft_key_gradients(const AftKeyGradients&);
void aft_bias_gradient(const AftBiasGradient&);
}  // namespace cuda

}  // namespace elwise
