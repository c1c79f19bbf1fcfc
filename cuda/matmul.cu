#include "ops/matmul_kernels.h"

#include <cublasLt.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <utility>

#include "cuda/launch.cuh"
#include "cuda/vector.cuh"
#include "ops/elementwise_kernels.h"

// cuBLASLt's matrices are column-major: it reads a row-major [rows, cols] as [cols, rows], without a copy. So
// it is asked for c^T = op(b)^T op(a)^T, with b for its A and a for its B, and the rows of its D, which its
// bias goes along, are the columns of c.

namespace elwise::cuda {
namespace {

// A batch that some of cuBLASLt's kernels refuse starts at 65536; a power of two keeps all parts aligned.
constexpr int64_t kMostBatch = int64_t{1} << 15;
// Plans of a device; beyond that (lengths that grow step by step) it starts afresh.
constexpr size_t kMostPlans = 4096;
constexpr uintptr_t kWorkspaceAlignment = 256;
constexpr uint64_t kAlignedWorkspace = kMatmulWorkspaceBytes - kWorkspaceAlignment;

void check(cublasStatus_t status, const char* call, const Matmul& args) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  fail("matmul: ", call, " failed: ", cublasLtGetStatusString(status), " (", cublasLtGetStatusName(status),
       ") for ", args.dtype, " [", args.m, ", ", args.k, "] x [", args.k, ", ", args.n, "], batch ",
       args.inner, ", row strides ", args.lda, ", ", args.ldb, ", ", args.ldc,
       args.transpose_a ? ", a transposed" : "", args.transpose_b ? ", b transposed" : "");
}

bool has_epilogue(const Matmul& args) {
  return args.bias != nullptr || args.gelu_tanh;
}

cudaDataType_t type_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return CUDA_R_32F;
    case DType::f64:
      return CUDA_R_64F;
    case DType::bf16:
      return CUDA_R_16BF;
    default:
      fail("matmul: expected dtype f32, f64 or bf16, got ", dtype);
  }
}

/// The problem, a batch with one stride (outer = 1), in cuBLASLt's terms. Made anew for each call: that takes
/// no memory, and threads share nothing.
class Description {
 public:
  Description(const Matmul& args, bool with_epilogue) : args_(args) {
    const bool wide = args.dtype == DType::f64, tf32 = args.dtype == DType::f32 && args.allow_tf32;
    check(cublasLtMatmulDescInit(&operation_,
                                 wide   ? CUBLAS_COMPUTE_64F
                                 : tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32
                                        : CUBLAS_COMPUTE_32F,
                                 wide ? CUDA_R_64F : CUDA_R_32F),
          "cublasLtMatmulDescInit", args);
    set(CUBLASLT_MATMUL_DESC_TRANSA, operation(args.transpose_b));
    set(CUBLASLT_MATMUL_DESC_TRANSB, operation(args.transpose_a));
    if (with_epilogue && has_epilogue(args)) set_epilogue();
    init_layout(a_, args.transpose_a ? args.k : args.m, args.transpose_a ? args.m : args.k, args.lda,
                args.a_inner);
    init_layout(b_, args.transpose_b ? args.n : args.k, args.transpose_b ? args.k : args.n, args.ldb,
                args.b_inner);
    init_layout(c_, args.m, args.n, args.ldc, args.c_inner);
  }
  Description(const Description&) = delete;
  Description& operator=(const Description&) = delete;

  /// The first choice of cuBLASLt's heuristic, which depends on the problem alone; none where it has no
  /// kernel.
  cublasStatus_t choose(cublasLtHandle_t handle, cublasLtMatmulAlgo_t& algorithm) {
    cublasLtMatmulPreferenceOpaque_t preference;
    check(cublasLtMatmulPreferenceInit(&preference), "cublasLtMatmulPreferenceInit", args_);
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
      check(cublasLtMatmulPreferenceSetAttribute(&preference, attribute, &value, sizeof value),
            "cublasLtMatmulPreferenceSetAttribute", args_);
    };
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kAlignedWorkspace);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(args_.b));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(args_.a));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(args_.c));
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(args_.c));
    if (args_.dtype == DType::bf16) {  // where k is split over blocks, their sums meet in f32
      prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE});
    }
    cublasLtMatmulHeuristicResult_t result{};
    int found = 0;
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle, &operation_, &b_, &a_, &c_, &c_,
                                                                 &preference, 1, &result, &found);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    if (found == 0) return CUBLAS_STATUS_NOT_SUPPORTED;
    algorithm = result.algo;
    return result.state;
  }

  void run(cublasLtHandle_t handle, const cublasLtMatmulAlgo_t& algorithm) {
    const double scale = args_.scale, sum = args_.accumulate ? 1 : 0;
    const float scale_f32 = static_cast<float>(scale), sum_f32 = static_cast<float>(sum);
    const bool wide = args_.dtype == DType::f64;
    const auto workspace = reinterpret_cast<uintptr_t>(args_.workspace);
    const uintptr_t aligned =
        (workspace + kWorkspaceAlignment - 1) / kWorkspaceAlignment * kWorkspaceAlignment;
    check(cublasLtMatmul(handle, &operation_, wide ? static_cast<const void*>(&scale) : &scale_f32, args_.b,
                         &b_, args_.a, &a_, wide ? static_cast<const void*>(&sum) : &sum_f32, args_.c, &c_,
                         args_.c, &c_, &algorithm, reinterpret_cast<void*>(aligned), kAlignedWorkspace,
                         current_stream()),
          "cublasLtMatmul", args_);
  }

  /// Up to 256 bytes, the most that kernels ask for.
  static uint32_t alignment_of(const void* pointer) {
    const auto address = reinterpret_cast<uintptr_t>(pointer);
    return static_cast<uint32_t>(std::min<uintptr_t>(address & -address, 256));
  }

 private:
  static int32_t operation(bool transpose) {
    return static_cast<int32_t>(transpose ? CUBLAS_OP_T : CUBLAS_OP_N);
  }

  template <class T>
  void set(cublasLtMatmulDescAttributes_t attribute, T value) {
    check(cublasLtMatmulDescSetAttribute(&operation_, attribute, &value, sizeof value),
          "cublasLtMatmulDescSetAttribute", args_);
  }

  void set_epilogue() {
    uint32_t epilogue = 0;
    if (args_.gelu_tanh) epilogue |= uint32_t{CUBLASLT_EPILOGUE_GELU};  // cuBLASLt's is the tanh form
    if (args_.bias != nullptr) {
      epilogue |= uint32_t{CUBLASLT_EPILOGUE_BIAS};
      set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, args_.bias);
    }
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
  }

  /// Of row-major [rows, cols].
  void init_layout(cublasLtMatrixLayoutOpaque_t& layout, int64_t rows, int64_t cols, int64_t ld,
                   int64_t stride) {
    check(cublasLtMatrixLayoutInit(&layout, type_of(args_.dtype), static_cast<uint64_t>(cols),
                                   static_cast<uint64_t>(rows), ld),
          "cublasLtMatrixLayoutInit", args_);
    if (args_.inner == 1) return;
    const auto batch = static_cast<int32_t>(args_.inner);
    check(cublasLtMatrixLayoutSetAttribute(&layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch, sizeof batch),
          "cublasLtMatrixLayoutSetAttribute", args_);
    check(cublasLtMatrixLayoutSetAttribute(&layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride,
                                           sizeof stride),
          "cublasLtMatrixLayoutSetAttribute", args_);
  }

  const Matmul& args_;
  cublasLtMatmulDescOpaque_t operation_;
  cublasLtMatrixLayoutOpaque_t a_, b_, c_;
};

/// How a problem is computed.
struct Plan {
  cublasLtMatmulAlgo_t algorithm;
  bool with_epilogue;
};

/// What a plan depends on.
struct Key {
  DType dtype;
  int64_t m, n, k, lda, ldb, ldc, batch, a_stride, b_stride, c_stride;
  bool transpose_a, transpose_b, bias, gelu, tf32;
  uint32_t a_alignment, b_alignment, c_alignment, bias_alignment;

  explicit Key(const Matmul& args)
      : dtype(args.dtype),
        m(args.m),
        n(args.n),
        k(args.k),
        lda(args.lda),
        ldb(args.ldb),
        ldc(args.ldc),
        batch(args.inner),
        a_stride(args.inner > 1 ? args.a_inner : 0),
        b_stride(args.inner > 1 ? args.b_inner : 0),
        c_stride(args.inner > 1 ? args.c_inner : 0),
        transpose_a(args.transpose_a),
        transpose_b(args.transpose_b),
        bias(args.bias != nullptr),
        gelu(args.gelu_tanh),
        tf32(args.allow_tf32),
        a_alignment(Description::alignment_of(args.a)),
        b_alignment(Description::alignment_of(args.b)),
        c_alignment(Description::alignment_of(args.c)),
        bias_alignment(Description::alignment_of(args.bias)) {}
  auto operator<=>(const Key&) const = default;
};

/// A device's handle and plans.
class Library {
 public:
  explicit Library(const Matmul& first) { check(cublasLtCreate(&handle_), "cublasLtCreate", first); }

  /// The current device's.
  static Library& current(const Matmul& args) {
    // Never destroyed: the driver may be gone before static objects are.
    static auto& libraries = *new std::map<int, Library>;
    static std::mutex mutex;
    const std::lock_guard lock(mutex);
    return libraries.try_emplace(current_device(), args).first->second;
  }

  cublasLtHandle_t handle() const { return handle_; }

  Plan plan(const Matmul& args) {
    const Key key(args);
    const std::lock_guard lock(mutex_);
    const auto known = plans_.find(key);
    if (known != plans_.end()) return known->second;
    if (plans_.size() >= kMostPlans) plans_.clear();
    return plans_.emplace(key, make_plan(args)).first->second;
  }

 private:
  Plan make_plan(const Matmul& args) const {
    Plan plan{.algorithm = {}, .with_epilogue = true};
    // Not every kernel has every epilogue in every version.
    if (has_epilogue(args) &&
        Description(args, true).choose(handle_, plan.algorithm) == CUBLAS_STATUS_SUCCESS) {
      return plan;
    }
    plan.with_epilogue = false;
    check(Description(args, false).choose(handle_, plan.algorithm), "cublasLtMatmulAlgoGetHeuristic", args);
    return plan;
  }

  cublasLtHandle_t handle_ = nullptr;
  std::map<Key, Plan> plans_;
  std::mutex mutex_;
};

/// c = bias (+ c), or 0; N elements of a row at a time.
template <class T, int N>
__global__ void add_bias_kernel(T* c, const T* bias, int64_t rows, int64_t m, int64_t n, int64_t ldc,
                                int64_t stride, bool accumulate) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    T* to = c + row / m * stride + row % m * ldc;
    for (int64_t col = int64_t{threadIdx.x} * N; col < n; col += int64_t{blockDim.x} * N) {
      Vector<T, N> sum{};
      if (bias != nullptr) sum = load<N>(bias + col);
      if (accumulate) {
        const Vector<T, N> old = load<N>(to + col);
#pragma unroll
        for (int i = 0; i < N; ++i)
          sum.at[i] = T(static_cast<Compute<T>>(sum.at[i]) + static_cast<Compute<T>>(old.at[i]));
      }
      store(to + col, sum);
    }
  }
}

void add_bias(const Matmul& args, bool accumulate) {
  dispatch_floating(args.dtype, "matmul", [&]<class T>() {
    constexpr int kWidth = kVectorWidth<T>;
    const int64_t rows = args.inner * args.m;
    const bool vectors = is_aligned(args.c, args.bias) && args.n % kWidth == 0 && args.ldc % kWidth == 0 &&
                         args.c_inner % kWidth == 0;
    const auto run = [&]<int N>() {
      launch<add_bias_kernel<T, N>>({.grid = grid_for(rows * kThreads), .block = kThreads},
                                    static_cast<T*>(args.c), static_cast<const T*>(args.bias), rows, args.m,
                                    args.n, args.ldc, args.c_inner, accumulate);
    };
    vectors ? run.template operator()<kWidth>() : run.template operator()<1>();
  });
}

/// A batch with one stride: outer = 1.
void multiply(const Matmul& args) {
  if (args.k > 0) {
    Library& library = Library::current(args);
    const Plan plan = library.plan(args);
    Description(args, plan.with_epilogue).run(library.handle(), plan.algorithm);
    if (plan.with_epilogue) return;
    if (args.bias != nullptr) add_bias(args, /*accumulate=*/true);
  } else if (!args.accumulate || args.bias != nullptr) {
    add_bias(args, args.accumulate);
  }
  if (args.gelu_tanh) {
    unary_forward(
        {.dtype = args.dtype, .op = UnaryOp::gelu_tanh, .x = args.c, .y = args.c, .count = args.m * args.n});
  }
}

/// The same products, as many as can be of them in the inner batch.
Matmul with_long_batch(Matmul args) {
  const auto collapses = [&](int64_t outer, int64_t inner) { return outer == args.inner * inner; };
  if (args.inner > 1 && args.outer > 1 && collapses(args.a_outer, args.a_inner) &&
      collapses(args.b_outer, args.b_inner) && collapses(args.c_outer, args.c_inner)) {
    args.inner *= args.outer;
    args.outer = 1;
  } else if (args.outer > args.inner) {
    std::swap(args.outer, args.inner);
    std::swap(args.a_outer, args.a_inner);
    std::swap(args.b_outer, args.b_inner);
    std::swap(args.c_outer, args.c_inner);
  }
  return args;
}

}  // namespace

void matmul(const Matmul& args) {
  if (args.outer * args.inner * args.m * args.n == 0) return;
  const Matmul all = with_long_batch(args);
  const auto at = [&](const void* data, int64_t element) {
    return static_cast<char*>(const_cast<void*>(data)) + element * size_of(args.dtype);
  };
  for (int64_t o = 0; o < all.outer; ++o) {
    for (int64_t i = 0; i < all.inner; i += kMostBatch) {
      Matmul part = all;
      part.a = at(all.a, o * all.a_outer + i * all.a_inner);
      part.b = at(all.b, o * all.b_outer + i * all.b_inner);
      part.c = at(all.c, o * all.c_outer + i * all.c_inner);
      part.outer = 1;
      part.inner = std::min(kMostBatch, all.inner - i);
      multiply(part);
    }
  }
}

}  // namespace elwise::cuda
