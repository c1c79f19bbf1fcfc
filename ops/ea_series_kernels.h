#pragma once

#include "core/cost.h"
#include "core/dtype.h"

namespace elwise {

inline constexpr int kEaSeriesMaxOrder = 16;

/// The causal form keeps its moments at every 128th row: backward re-runs one chunk at a time from there.
inline constexpr int64_t kEaSeriesChunk = 128;

constexpr int64_t ea_series_chunks(int64_t length) {
  return (length + kEaSeriesChunk - 1) / kEaSeriesChunk;
}

/// Moment sets that forward keeps for backward: those before each chunk (causal), or the totals.
constexpr int64_t ea_series_carries(int64_t length, bool causal) {
  return causal ? ea_series_chunks(length) : 1;
}

/// Where batch and channels make few tasks, the CPU's kernels cut the length in pieces of this many rows,
/// which they work on side by side: the sums of each piece, a scan of the sums, and each piece from what that
/// left.
inline constexpr int64_t kEaSeriesPiece = 8 * kEaSeriesChunk;

/// Tasks without a cut: runs of 16 neighbouring channels of one batch entry, a cache line of f32.
constexpr int64_t ea_series_columns(int64_t batch, int64_t channels) {
  return batch * ((channels + 15) / 16);
}

/// Pieces of the length. They follow from the shape alone, so that results do too, whatever the threads. Not
/// causal, a cut adds no pass over the rows, and 64 threads are to have work. Causal, it adds one: 64 threads
/// gain where half of them would have nothing to do.
constexpr int64_t ea_series_pieces(int64_t batch, int64_t length, int64_t channels, bool causal) {
  const int64_t columns = ea_series_columns(batch, channels);
  const bool is_cut = causal ? columns <= 32 && length >= 4096 : columns < 64 && length > kEaSeriesPiece;
  return is_cut ? (length + kEaSeriesPiece - 1) / kEaSeriesPiece : 1;
}

/// How many tasks the CPU's kernels can work on at a time. Vectors of fewer than 16 channels make more.
constexpr int64_t ea_series_tasks(int64_t batch, int64_t length, int64_t channels, bool causal) {
  return ea_series_columns(batch, channels) * ea_series_pieces(batch, length, channels, causal);
}

/// Rows of one moment set: S_0 .. S_t, Z_0 .. Z_t, and kappa (the minimum of |k| over the visible keys).
constexpr int64_t ea_series_carry_rows(int64_t order) {
  return 2 * order + 3;
}

/// The state of the recurrent form: S_n and Z_n of the keys so far with the weights exp(r^2 - k^2), r = kappa
/// where above 4, else 0. All null: there is none. f32 beside bf16 tensors.
struct EaSeriesStatePointers {
  void* s = nullptr;      // [batch, channels, order + 1]
  void* z = nullptr;      // [batch, channels, order + 1]
  void* kappa = nullptr;  // [batch, channels], infinite before the first key
};

/// EA-series of even order t (eq. 5, 6 of arXiv 2501.05730), channel by channel. With c_n = 2^n / n! and
/// w_j = exp(kappa^2 - k_j^2): S_n = sum_j w_j k_j^n v_j, Z_n = sum_j w_j k_j^n over the visible keys j (j <=
/// i when causal); y_i = sum_n c_n q_i^n S_n / sum_n c_n q_i^n Z_n. A query that sees no key has y = 0. carry
/// and partials are f32 beside bf16 tensors.
struct EaSeriesForward {
  DType dtype;
  const void* q;  // [batch, length, channels]
  const void* k;  // [batch, length, channels]
  const void* v;  // [batch, length, channels]
  void* y;        // [batch, length, channels]
  int64_t batch;
  int64_t length;
  int64_t channels;
  int order;
  bool causal;
  void* carry;                       // [batch, ea_series_carries, ea_series_carry_rows, channels]
  const bool* key_mask = nullptr;    // [batch, length], true = visible
  void* partials = nullptr;          // [batch, ea_series_chunks, ea_series_carry_rows, channels]: scratch for
                                     // the sums of chunks or pieces, where not causal
  EaSeriesStatePointers state = {};  // causal only: the keys before the first row, then those up to the last

  KernelCost cost() const {
    const double n = static_cast<double>(batch * length * channels),
                 bytes = n * static_cast<double>(size_of(dtype));
    return {.flops = n * (8.0 * order + 12), .bytes_read = 3 * bytes, .bytes_written = bytes};
  }
};

/// The analytic gradient: with N_i, D_i the two polynomials, a_i = dy_i / D_i and b_i = -dy_i y_i / D_i,
/// dq_i = sum_n n c_n q_i^(n-1) (a_i S_n + b_i Z_n); A_n = sum_i c_n q_i^n a_i, B_n = sum_i c_n q_i^n b_i
/// over the queries i that see j; dv_j = w_j sum_n k_j^n A_n; dk_j = w_j sum_n (n k_j^(n-1) - 2 k_j^(n+1))
/// (v_j A_n + B_n).
struct EaSeriesBackward {
  DType dtype;
  const void* q;  // [batch, length, channels], as all but carry
  const void* k;
  const void* v;
  const void* dy;
  const void* carry;  // [batch, ea_series_carries, ea_series_carry_rows, channels]
  void* partials;  // [batch, ea_series_chunks, ea_series_carry_rows, channels]: scratch for A, B of chunks or
                   // pieces
  void* dq;
  void* dk;
  void* dv;
  int64_t batch;
  int64_t length;
  int64_t channels;
  int order;
  bool causal;
  const bool* key_mask = nullptr;  // [batch, length], true = visible

  KernelCost cost() const {
    const double n = static_cast<double>(batch * length * channels),
                 bytes = n * static_cast<double>(size_of(dtype));
    return {.flops = n * (22.0 * order + 30), .bytes_read = 4 * bytes, .bytes_written = 3 * bytes};
  }
};

/// One token of the recurrent form (eq. 12 - 16): the keys join the state, then the queries are answered.
struct EaSeriesStep {
  DType dtype;
  const void* q;  // [batch, channels], as k, v and y
  const void* k;
  const void* v;
  void* y;
  EaSeriesStatePointers state;
  int64_t batch;
  int64_t channels;
  int order;

  KernelCost cost() const {
    const double n = static_cast<double>(batch * channels), size = static_cast<double>(size_of(dtype)),
                 state_bytes = (2.0 * order + 3) * (dtype == DType::f64 ? 8 : 4);
    return {.flops = n * (8.0 * order + 12),
            .bytes_read = n * (3 * size + state_bytes),
            .bytes_written = n * (size + state_bytes)};
  }
};

namespace cpu {
void ea_series_forward(const EaSeriesForward&);
void ea_series_backward(const EaSeriesBackward&);
void ea_series_step(const EaSeriesStep&);
}  // namespace cpu
namespace cuda {
void ea_series_forward(const EaSeriesForward&);
void ea_series_backward(const EaSeriesBackward&);
void ea_series_step(const EaSeriesStep&);
}  // namespace cuda

}  // namespace elwise
