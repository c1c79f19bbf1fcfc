#pragma once

#include "core/cost.h"
#include "core/dtype.h"

namespace elwise {

/// Rows that a cache grows by.
inline constexpr int64_t kCacheBlock = 256;

/// Rows that are summed by themselves, where the device has more processors than heads: their number depends
/// on the shape only.
inline constexpr int64_t kCacheSplit = 256;
constexpr int64_t cache_splits(int64_t longest) {
  return (longest + kCacheSplit - 1) / kCacheSplit;
}

/// The keys and values of the tokens so far, of which entry b holds the rows before lengths[b].
struct CachePointers {
  const void* k;           // [batch, capacity, channels]
  const void* v;           // [batch, capacity, channels]
  const int64_t* lengths;  // [batch]
  int64_t batch;
  int64_t capacity;
  int64_t channels;
  int64_t longest;  // no length is above it

  /// Of one pass over as many rows as there may be.
  double elements() const { return 2 * static_cast<double>(batch * longest * channels); }
};

/// Copies the visible rows behind those that the cache holds, and counts them.
struct CacheAppend {
  DType dtype;
  const void* k;     // [batch, length, channels]
  const void* v;     // [batch, length, channels]
  void* cache_k;     // [batch, capacity, channels]
  void* cache_v;     // [batch, capacity, channels]
  int64_t* lengths;  // [batch]
  int64_t batch;
  int64_t length;
  int64_t capacity;
  int64_t channels;
  const bool* key_mask = nullptr;  // [batch, length], true = visible

  KernelCost cost() const {
    const double bytes = 2 * static_cast<double>(batch * length * channels * size_of(dtype));
    return {.flops = 0, .bytes_read = bytes, .bytes_written = bytes};
  }
};

/// y_h = sum_j softmax_j(scale q_h . k_jh) v_jh over the keys of the cache, head by head. y = 0 without keys,
/// here and in the steps below. Partial sums are f32 beside bf16 tensors; the CPU needs none.
struct SoftmaxAttentionStep {
  DType dtype;
  const void* q;   // [batch, channels]
  void* y;         // [batch, channels]
  void* partials;  // [batch, cache_splits, heads, head + 2]: scratch
  CachePointers cache;
  int64_t heads;
  double scale;

  KernelCost cost() const {
    const double elements = cache.elements(), size = static_cast<double>(size_of(dtype)),
                 row = static_cast<double>(cache.batch * cache.channels) * size;
    return {.flops = 2 * elements, .bytes_read = elements * size + row, .bytes_written = row};
  }
};

/// y = sum_j w_j v_j / sum_j w_j, w_j = exp(-(q - k_j)^2), channel by channel.
struct EaStep {
  DType dtype;
  const void* q;   // [batch, channels]
  void* y;         // [batch, channels]
  void* partials;  // [batch, cache_splits, 3, channels]: scratch
  CachePointers cache;

  KernelCost cost() const {
    const double elements = cache.elements(), size = static_cast<double>(size_of(dtype)),
                 row = static_cast<double>(cache.batch * cache.channels) * size;
    return {.flops = 3.5 * elements, .bytes_read = elements * size + row, .bytes_written = row};
  }
};

/// y = sigmoid(q) sum_j w_j v_j / sum_j w_j, w_j = exp(k_j + position_bias[i, j]), i = lengths[b] - 1,
/// channel by channel.
struct AftStep {
  DType dtype;
  const void* q;   // [batch, channels]
  void* y;         // [batch, channels]
  void* partials;  // [batch, cache_splits, 3, channels]: scratch
  CachePointers cache;
  const void* position_bias;  // [positions, positions]
  int64_t positions;          // at least cache.longest

  KernelCost cost() const {
    const double elements = cache.elements(), size = static_cast<double>(size_of(dtype)),
                 row = static_cast<double>(cache.batch * cache.channels) * size;
    return {.flops = 3 * elements, .bytes_read = elements * size + row, .bytes_written = row};
  }
};

/// The recurrence of linear attention, row by row: with phi(x) = elu(x) + 1, S += phi(k) v^T and z += phi(k)
/// where the key is visible, then y = S^T phi(q) / (z . phi(q)). The state is f32 beside bf16 tensors.
struct LinearAttentionStep {
  DType dtype;
  const void* q;  // [batch, length, heads * head], as k, v and y
  const void* k;
  const void* v;
  void* y;
  void* s;  // [batch, heads, head, head]: S, a row to an element of phi(k)
  void* z;  // [batch, heads, head]
  int64_t batch;
  int64_t length;
  int64_t heads;
  int64_t head;
  const bool* key_mask = nullptr;  // [batch, length], true = visible

  KernelCost cost() const {
    const double rows = static_cast<double>(batch * length * heads * head),
                 state =
                     static_cast<double>(batch * heads * head * (head + 1)) * (dtype == DType::f64 ? 8 : 4),
                 bytes = rows * static_cast<double>(size_of(dtype));
    return {.flops = rows * (4.0 * static_cast<double>(head) + 8),
            .bytes_read = 3 * bytes + state,
            .bytes_written = bytes + state};
  }
};

namespace cpu {
void cache_append(const CacheAppend&);
void softmax_attention_step(const SoftmaxAttentionStep&);
void ea_step(const EaStep&);
void aft_step(const AftStep&);
void linear_attention_step(const LinearAttentionStep&);
}  // namespace cpu
namespace cuda {
void cache_append(const CacheAppend&);
void softmax_attention_step(const SoftmaxAttentionStep&);
void ea_step(const EaStep&);
void aft_step(const AftStep&);
void linear_attention_step(const LinearAttentionStep&);
}  // namespace cuda

}  // namespace elwise
