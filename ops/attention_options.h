#pragma once

#include "core/tensor.h"

namespace elwise {

/// Which keys a query sees. A query that sees none has output 0 and gives no gradient, in every mechanism.
struct AttentionOptions {
  bool causal = false;  // query i sees keys 0 .. i
  Tensor key_mask;      // bool [batch, length], true = visible; undefined: all are
};

/// Throws Error, naming `op`, unless q, k, v are [batch, length, channels] of f32, f64 or bf16, alike in
/// shape, dtype and device, and the key mask fits them.
void check_attention(const char* op, const Tensor& q, const Tensor& k, const Tensor& v,
                     const AttentionOptions& options);

/// Throws Error, naming `op`, unless q, k, v are [batch, channels] of f32, f64 or bf16, alike in shape, dtype
/// and device.
void check_attention_step(const char* op, const Tensor& q, const Tensor& k, const Tensor& v);

/// Throws Error where recording is on and an input requires its gradient: `op` has none.
void check_not_recorded(const char* op, const std::vector<Tensor>& inputs);

/// The mask's elements, or null.
inline const bool* key_mask_data(const AttentionOptions& options) {
  return options.key_mask.defined() ? static_cast<const bool*>(options.key_mask.data()) : nullptr;
}

}  // namespace elwise
