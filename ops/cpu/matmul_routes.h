#pragma once

#include "ops/matmul_kernels.h"

namespace elwise::cpu {

// The ways of cpu::matmul, which picks one by shape. All of them give the same bits for any thread count, and
// expect m, n, k and the number of products to be positive.

/// Our own blocked kernel, f32, f64 and bf16 (in f32), for any strides. An element is summed over k in order,
/// in blocks of a fixed size, whatever tile it falls in.
void matmul_blocked(const Matmul& args);

/// For up to kMaxThinRows rows, f32, f64 and, where transpose_b is set, bf16: reads b once and in place, as
/// fast as memory gives it. Elements of a must be contiguous along k where transpose_b is set.
void matmul_thin(const Matmul& args);
inline constexpr int64_t kMaxThinRows = 8;

/// oneDNN's sgemm, f32, one call per block of c and thread, for any strides. It packs both operands, and sums
/// an element over k in the same order whatever block it falls in (the tests see to it). False, with nothing
/// done, for another dtype, a bias, or one product too small to share.
bool matmul_sgemm(const Matmul& args);

/// oneDNN's matmul primitive, f32, b transposed and a not. False, with nothing done, where this processor,
/// the strides or the arguments have none, or where oneDNN might split k over the threads.
bool matmul_onednn(const Matmul& args);

/// The same for bf16 products of any layout and k (but see matmul.cpp), or for many products with gaps
/// between their rows. False, with nothing done, where this processor has no bf16 products, for one product
/// with gaps, and for a bias beside a scale.
bool matmul_onednn_bf16(const Matmul& args);

}  // namespace elwise::cpu
