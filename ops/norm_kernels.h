#pragma once

#include "core/cost.h"
#include "core/dtype.h"

namespace elwise {

/// y = (h - mean) * rstd * weight + bias for each row of h = x + residual; rstd = 1 / sqrt(variance + eps)
/// with the biased variance. y may be x or residual.
struct LayerNormForward {
  DType dtype;
  const void* x;  // [rows, cols]
  void* y;        // [rows, cols]
  void* mean;     // [rows], f64 for f64, else f32
  void* rstd;     // [rows], likewise
  int64_t rows;
  int64_t cols;
  double eps;
  const void* residual = nullptr;  // [rows, cols]
  void* sum = nullptr;             // [rows, cols]: receives h; needed with residual when backward follows
  const void* weight = nullptr;    // [cols]
  const void* bias = nullptr;      // [cols]

  KernelCost cost() const {
    const double n = static_cast<double>(rows * cols), bytes = n * static_cast<double>(size_of(dtype));
    return {.flops = 8 * n,
            .bytes_read = bytes * (residual != nullptr ? 2 : 1),
            .bytes_written = bytes * (sum != nullptr ? 2 : 1)};
  }
};

/// Rows whose sums make one partial row of dweight and dbias. A function of the shape only, so that the order
/// of additions depends on nothing else; few rows make few each, so that there are partials for all of a GPU.
constexpr int64_t layer_norm_rows_per_partial(int64_t rows) {
  constexpr int64_t kPartials = 128, kFewest = 4, kMost = 64;
  const int64_t wanted = (rows + kPartials - 1) / kPartials;
  return wanted < kFewest ? kFewest : wanted > kMost ? kMost : wanted;
}

constexpr int64_t layer_norm_partials(int64_t rows) {
  const int64_t each = layer_norm_rows_per_partial(rows);
  return (rows + each - 1) / each;
}

/// dx from dy, plus dweight and dbias where asked for. dx may be dy.
struct LayerNormBackward {
  DType dtype;
  const void* h;     // [rows, cols]: the normalised rows' input, x + residual
  const void* mean;  // [rows], f64 for f64, else f32
  const void* rstd;  // [rows], likewise
  const void* dy;    // [rows, cols]
  void* dx;          // [rows, cols]: the gradient of h, so of x and of residual
  int64_t rows;
  int64_t cols;
  const void* weight = nullptr;  // [cols]
  const void* dsum = nullptr;    // [rows, cols]: a gradient that reached h by another way, added to dx
  void* dweight = nullptr;       // [cols]
  void* dbias = nullptr;         // [cols]
  void* partials = nullptr;      // [2, layer_norm_partials(rows), cols] like mean: scratch for dweight, dbias

  KernelCost cost() const {
    const double n = static_cast<double>(rows * cols), bytes = n * static_cast<double>(size_of(dtype));
    return {.flops = 14 * n, .bytes_read = bytes * (dsum != nullptr ? 3 : 2), .bytes_written = bytes};
  }
};

namespace cpu {
void layer_norm_forward(const LayerNormForward&);
void layer_norm_backward(const LayerNormBackward&);
}  // namespace cpu
namespace cuda {
void layer_norm_forward(const LayerNormForward&);
void layer_norm_backward(const LayerNormBackward&);
}  // namespace cuda

}  // namespace elwise
