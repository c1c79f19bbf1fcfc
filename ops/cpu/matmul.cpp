#include "ops/matmul_kernels.h"

#include <algorithm>
#include <bit>

#include "core/parallel.h"
#include "ops/cpu/matmul_routes.h"
#include "ops/elementwise_kernels.h"

namespace elwise::cpu {
namespace {

/// k = 0: c = bias (+ c), or 0.
template <class T>
void empty_sum(const Matmul& args) {
  const T* bias = static_cast<const T*>(args.bias);
  if (args.accumulate && !bias) return;
  parallel_for(args.outer * args.inner * args.m, 1 + (int64_t{1} << 15) / args.n,
               [&](int64_t begin, int64_t end) {
                 for (int64_t item = begin; item < end; ++item) {
                   const int64_t product = item / args.m;
                   T* row = static_cast<T*>(args.c) + product / args.inner * args.c_outer +
                            product % args.inner * args.c_inner + item % args.m * args.ldc;
                   for (int64_t j = 0; j < args.n; ++j) {
                     Compute<T> sum = 0;
                     if (args.accumulate) sum += static_cast<Compute<T>>(row[j]);
                     if (bias) sum += static_cast<Compute<T>>(bias[j]);
                     row[j] = static_cast<T>(sum);
                   }
                 }
               });
}

/// Few rows, read in place. With one row a and a transposed a are the same but for the stride.
bool is_thin(const Matmul& args) {
  const int64_t a_k = args.transpose_a ? args.lda : 1;
  if (args.dtype == DType::bf16 && !args.transpose_b) return false;
  return args.m <= kMaxThinRows && (!args.transpose_b || a_k == 1 || args.k == 1);
}

/// Where oneDNN's kernels are worth their start.
bool is_large(const Matmul& args) {
  return args.outer * args.inner * args.m * args.n * args.k >= int64_t{1} << 20;
}

/// oneDNN would split a k that is a large power of two over the threads where a is transposed and bf16, which
/// would make the result depend on their count. Of the k tried it did so for no other: it gets two.
bool multiply_bf16(const Matmul& args) {
  constexpr int64_t kLeastSplit = 2048, kOff = 64;
  const auto k = static_cast<uint64_t>(args.k);
  if (!args.transpose_a || args.k < kLeastSplit || !std::has_single_bit(k)) return matmul_onednn_bf16(args);
  Matmul first = args, second = args;
  first.k = args.k / 2 + kOff;
  second.k = args.k - first.k;
  second.a = static_cast<const BFloat16*>(args.a) + first.k * args.lda;
  second.b = static_cast<const BFloat16*>(args.b) + first.k * (args.transpose_b ? 1 : args.ldb);
  second.bias = nullptr;
  second.accumulate = true;
  return matmul_onednn_bf16(first) && (matmul_onednn_bf16(second) || (matmul_blocked(second), true));
}

/// All but GELU.
void multiply(const Matmul& args) {
  if (args.k == 0) {
    return dispatch_f32_f64_bf16(args.dtype, "matmul", [&]<class T>() { empty_sum<T>(args); });
  }
  if (is_thin(args)) return matmul_thin(args);
  if (is_large(args) && args.dtype == DType::bf16) {
    if (multiply_bf16(args)) return;
  } else if (is_large(args)) {
    // On AVX-512 at the shapes of BERT-base, weights coming from memory, the primitive is ahead for a
    // transposed b (a linear layer's forward), sgemm for the others (its gradients).
    if (matmul_onednn(args)) return;
    if (matmul_sgemm(args)) return;
  }
  matmul_blocked(args);
}

}  // namespace

void matmul(const Matmul& args) {
  if (args.outer * args.inner * args.m * args.n == 0) return;
  multiply(args);
  if (args.gelu_tanh) {  // oneDNN's GELU inside of its product takes longer
    unary_forward(
        {.dtype = args.dtype, .op = UnaryOp::gelu_tanh, .x = args.c, .y = args.c, .count = args.m * args.n});
  }
}

}  // namespace elwise::cpu
