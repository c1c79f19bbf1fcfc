#pragma once

#include "core/cost.h"
#include "core/dtype.h"

namespace elwise {

/// Scratch that every matrix product gets, whatever its shape and the thread count: with one fixed size,
/// `meta` counts the same peak as the device. oneDNN asks for up to 320 KiB a thread: enough for 64 threads.
inline constexpr int64_t kMatmulWorkspaceBytes = int64_t{24} << 20;

/// c = op(a) op(b) (+ bias) (+ c), summed in f32 for bf16, and GELU of that if asked: `outer * inner`
/// products, product (o, i) at o * X_outer + i * X_inner from X's pointer (strides in elements; 0 repeats a
/// matrix). A matrix stored as [rows, cols] has its rows X_ld apart. Attention heads are read in place: outer
/// = batch, inner = heads, X_inner = head size.
struct Matmul {
  DType dtype;
  const void* a;  // [m, k], stored [k, m] when transpose_a
  const void* b;  // [k, n], stored [n, k] when transpose_b
  void* c;        // [m, n]
  int64_t m;
  int64_t n;
  int64_t k;
  int64_t lda;
  int64_t ldb;
  int64_t ldc;
  bool transpose_a;
  bool transpose_b;
  void* workspace;  // kMatmulWorkspaceBytes, aligned to 64
  int64_t outer = 1;
  int64_t inner = 1;
  int64_t a_outer = 0;
  int64_t a_inner = 0;
  int64_t b_outer = 0;
  int64_t b_inner = 0;
  int64_t c_outer = 0;
  int64_t c_inner = 0;
  const void* bias = nullptr;  // [n], added to every row
  bool accumulate = false;     // add to what c holds
  double scale = 1;            // multiplies the product (not the bias, not the old c)
  bool gelu_tanh = false;      // GELU, in its tanh form, in the end: for one product with ldc = n
  bool allow_tf32 = false;     // f32 on a GPU: a and b may be rounded to TF32

  KernelCost cost() const {
    const double count = static_cast<double>(outer * inner),
                 bytes = count * static_cast<double>(size_of(dtype));
    const double mk = static_cast<double>(m * k), kn = static_cast<double>(k * n),
                 mn = static_cast<double>(m * n);
    return {.flops = 2 * count * mk * static_cast<double>(n) + (gelu_tanh ? mn : 0),
            .bytes_read = bytes * (mk + kn + (accumulate ? mn : 0)),
            .bytes_written = bytes * mn};
  }
};

namespace cpu {
void matmul(const Matmul&);
}
namespace cuda {
void matmul(const Matmul&);
}

}  // namespace elwise
