#pragma once

#include <algorithm>

#include "core/cost.h"
#include "core/dtype.h"
#include "core/random.h"

namespace elwise {

/// How the CPU kernels cut a head: blocks of queries against blocks of keys. Sizes follow from the shape
/// alone, so that every SIMD target and every thread count takes the same scratch, and `meta` counts it.
struct AttentionTiles {
  static constexpr int64_t kMostThreads = 64;  // that take part, each with tiles of its own
  static constexpr int64_t kMostQueries = 192;
  static constexpr int64_t kMostKeys = 96;
  static constexpr int64_t kPanel = 48;  // queries side by side: three of the widest vectors
  static constexpr int64_t kUnit = 16;   // elements of the widest vector

  int64_t head;     // channels of a head
  int64_t width;    // the same, in whole units
  int64_t queries;  // of a block, in whole panels
  int64_t keys;     // of a block, in whole units
  int64_t blocks;   // of queries, in all heads of all batch entries

  static constexpr AttentionTiles of(int64_t batch, int64_t length, int64_t channels, int64_t heads) {
    const int64_t head = channels / heads, width = round_up(head, kUnit);
    const int64_t scale =
        std::max<int64_t>((width + 63) / 64, 1);  // the larger the head, the smaller the block
    const int64_t most = round_up(kMostQueries / scale, kPanel);
    const int64_t parts = std::max<int64_t>((length + most - 1) / most, 1);
    const int64_t queries = round_up((length + parts - 1) / parts, kPanel);
    const int64_t keys = std::min(round_up(kMostKeys / ((scale + 1) / 2), kUnit), round_up(length, kUnit));
    return {.head = head,
            .width = width,
            .queries = queries,
            .keys = keys,
            .blocks = length == 0 ? 0 : batch * heads * (round_up(length, queries) / queries)};
  }

  static constexpr int64_t round_up(int64_t size, int64_t unit) { return (size + unit - 1) / unit * unit; }
  constexpr int64_t threads() const { return std::min(blocks, kMostThreads); }
};

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
  void* logsumexp;  // [batch, heads, length]
  void* workspace;  // workspace_elements(), aligned to 64: tiles of the CPU's threads
  int64_t batch;
  int64_t length;
  int64_t channels;
  int64_t heads;
  double scale;  // positive
  bool causal;
  const bool* key_mask = nullptr;  // [batch, length], true = visible
  double dropout_p = 0;            // 0 <= dropout_p < 1
  RandomStream stream = {};

  AttentionTiles tiles() const { return AttentionTiles::of(batch, length, channels, heads); }
  /// Of one thread: queries and outputs; keys and values.
  int64_t thread_elements() const { return 2 * (tiles().queries + tiles().keys) * tiles().width; }
  int64_t workspace_elements() const { return tiles().threads() * thread_elements(); }

  KernelCost cost() const {
    const double rows = static_cast<double>(batch * length), bytes = static_cast<double>(size_of(dtype));
    const double n = rows * static_cast<double>(channels), weights = rows * static_cast<double>(heads);
    const double seen = static_cast<double>(length) * (causal ? 0.5 : 1);
    return {.flops = 4 * n * seen + 4 * weights * seen,
            .bytes_read = 3 * n * bytes,
            .bytes_written = (n + weights) * bytes};
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
  const void* logsumexp;  // [batch, heads, length]
  void* delta;            // [batch, heads, length], scratch
  void* dq;               // [batch, length, channels]
  void* dk;               // [batch, length, channels]
  void* dv;               // [batch, length, channels]
  void* workspace;        // workspace_elements(), aligned to 64: tiles of the CPU's threads
  int64_t batch;
  int64_t length;
  int64_t channels;
  int64_t heads;
  double scale;  // positive
  bool causal;
  const bool* key_mask = nullptr;  // [batch, length], true = visible
  double dropout_p = 0;            // 0 <= dropout_p < 1
  RandomStream stream = {};

  AttentionTiles tiles() const { return AttentionTiles::of(batch, length, channels, heads); }
  /// Of one thread: queries and dy, each in two layouts, and dq; keys and values; weights and their
  /// gradients.
  int64_t thread_elements() const {
    return (5 * tiles().queries + 2 * tiles().keys) * tiles().width + 2 * tiles().queries * tiles().keys;
  }
  int64_t workspace_elements() const { return tiles().threads() * thread_elements(); }

  KernelCost cost() const {
    const double rows = static_cast<double>(batch * length), bytes = static_cast<double>(size_of(dtype));
    const double n = rows * static_cast<double>(channels), weights = rows * static_cast<double>(heads);
    const double seen = static_cast<double>(length) * (causal ? 0.5 : 1);
    return {.flops = 10 * n * seen + 6 * weights * seen,
            .bytes_read = (5 * n + weights) * bytes,
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
