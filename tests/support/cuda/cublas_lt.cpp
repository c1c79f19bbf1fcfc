#include <cublasLt.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "tests/support/cuda/cublas_lt_product.h"
#include "tests/support/cuda/device_memory.h"

// cuBLASLt's interface: what it refuses, and algorithms that differ in the alignment and the workspace that
// they need.

struct cublasLtContext {
  int device;
};

namespace emulation {
namespace {

constexpr uint32_t kVectorBytes = 16;
constexpr uintptr_t kWorkspaceAlignment = 256;
constexpr uint64_t kLongSum = 512;  // from here on the sum over k is split, which takes workspace

size_t size_of(cudaDataType type) {
  return type == CUDA_R_64F ? 8 : type == CUDA_R_32F ? 4 : 2;
}

template <class Field>
cublasStatus_t set(Field& field, const void* value, size_t bytes) {
  if (value == nullptr || bytes != sizeof field) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(&field, value, bytes);
  return CUBLAS_STATUS_SUCCESS;
}

bool is_valid(const Layout& layout, uint64_t rows, uint64_t cols, const Layout& d) {
  return layout.rows == rows && layout.cols == cols && rows > 0 && cols > 0 &&
         layout.ld >= static_cast<int64_t>(rows) && layout.batch == d.batch && layout.batch > 0 &&
         layout.type == d.type;
}

cublasStatus_t check_shapes(const Product& product) {
  const auto is_operation = [](int32_t value) { return value == CUBLAS_OP_N || value == CUBLAS_OP_T; };
  const Description& desc = product.desc;
  if (!is_operation(desc.transpose_a) || !is_operation(desc.transpose_b)) return CUBLAS_STATUS_INVALID_VALUE;
  const Layout& d = product.d;
  uint64_t a_size[] = {d.rows, product.depth()}, b_size[] = {product.depth(), d.cols};
  if (desc.transpose_a == CUBLAS_OP_T) std::swap(a_size[0], a_size[1]);
  if (desc.transpose_b == CUBLAS_OP_T) std::swap(b_size[0], b_size[1]);
  const bool valid = is_valid(product.a, a_size[0], a_size[1], d) &&
                     is_valid(product.b, b_size[0], b_size[1], d) && is_valid(product.c, d.rows, d.cols, d) &&
                     is_valid(d, d.rows, d.cols, d);
  return valid ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}

/// What there are kernels for. Some versions of cuBLASLt have no epilogues for f64, and none with a bias for
/// one row: callers must do without.
cublasStatus_t check_support(const Product& product) {
  const Description& desc = product.desc;
  const bool wide = product.d.type == CUDA_R_64F;
  const bool computes = wide ? desc.compute == CUBLAS_COMPUTE_64F && desc.scale == CUDA_R_64F
                             : desc.compute == CUBLAS_COMPUTE_32F && desc.scale == CUDA_R_32F;
  const bool tf32 = product.d.type == CUDA_R_32F && desc.compute == CUBLAS_COMPUTE_32F_FAST_TF32 &&
                    desc.scale == CUDA_R_32F;
  if (!computes && !tf32) return CUBLAS_STATUS_NOT_SUPPORTED;
  switch (desc.epilogue) {
    case CUBLASLT_EPILOGUE_DEFAULT:
      return CUBLAS_STATUS_SUCCESS;
    case CUBLASLT_EPILOGUE_BIAS:
    case CUBLASLT_EPILOGUE_GELU:
    case CUBLASLT_EPILOGUE_GELU_BIAS:
      if (product.has_bias() && desc.bias == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
      return wide || (product.has_bias() && product.d.rows == 1) ? CUBLAS_STATUS_NOT_SUPPORTED
                                                                 : CUBLAS_STATUS_SUCCESS;
    default:
      return CUBLAS_STATUS_NOT_SUPPORTED;
  }
}

cublasStatus_t check(const Product& product) {
  const cublasStatus_t status = check_shapes(product);
  return status == CUBLAS_STATUS_SUCCESS ? check_support(product) : status;
}

bool keeps_alignment(const Layout& layout) {
  const auto element = static_cast<int64_t>(size_of(layout.type));
  return layout.ld * element % kVectorBytes == 0 && layout.batch_stride * element % kVectorBytes == 0;
}

bool is_aligned(const void* pointer, uintptr_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

void expect_on_device(const void* pointer, const char* what, int device) {
  if (DeviceMemory::owner(pointer) == device) return;
  fault(std::string("cublasLtMatmul: ") + what + " is not memory of device " + std::to_string(device));
}

double scalar(const void* value, cudaDataType type) {
  return type == CUDA_R_64F ? *static_cast<const double*>(value)
                            : static_cast<double>(*static_cast<const float*>(value));
}

}  // namespace
}  // namespace emulation

using namespace emulation;

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  int device = 0;
  cudaGetDevice(&device);
  *handle = new cublasLtContext{.device = device};
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  delete handle;
  return CUBLAS_STATUS_SUCCESS;
}

const char* cublasLtGetStatusName(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED:
      return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "CUBLAS_STATUS_NOT_SUPPORTED";
  }
  return "unrecognized status";
}

const char* cublasLtGetStatusString(cublasStatus_t status) {
  switch (status) {
    case CUBLAS_STATUS_SUCCESS:
      return "success";
    case CUBLAS_STATUS_NOT_INITIALIZED:
      return "the library was not initialized";
    case CUBLAS_STATUS_INVALID_VALUE:
      return "an unsupported value or parameter was passed to the function";
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return "the requested functionality is not supported";
  }
  return "unrecognized status";
}

cublasStatus_t cublasLtMatmulDescInit(cublasLtMatmulDesc_t desc, cublasComputeType_t compute,
                                      cudaDataType scale) {
  *desc = {.compute = compute,
           .scale = scale,
           .transpose_a = CUBLAS_OP_N,
           .transpose_b = CUBLAS_OP_N,
           .epilogue = CUBLASLT_EPILOGUE_DEFAULT,
           .bias = nullptr};
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc,
                                              cublasLtMatmulDescAttributes_t attribute, const void* value,
                                              size_t bytes) {
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return set(desc->transpose_a, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return set(desc->transpose_b, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return set(desc->epilogue, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      return set(desc->bias, value, bytes);
  }
  return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatrixLayoutInit(cublasLtMatrixLayout_t layout, cudaDataType type, uint64_t rows,
                                        uint64_t cols, int64_t ld) {
  *layout = {.type = type, .rows = rows, .cols = cols, .ld = ld, .batch = 1, .batch_stride = 0};
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute, const void* value,
                                                size_t bytes) {
  switch (attribute) {
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT:
      return set(layout->batch, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET:
      return set(layout->batch_stride, value, bytes);
  }
  return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatmulPreferenceInit(cublasLtMatmulPreference_t preference) {
  *preference = {.workspace = 0,
                 .reductions = CUBLASLT_REDUCTION_SCHEME_MASK,
                 .alignment_a = 256,
                 .alignment_b = 256,
                 .alignment_c = 256,
                 .alignment_d = 256};
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void* value, size_t bytes) {
  switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
      return set(preference->workspace, value, bytes);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
      return set(preference->reductions, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
      return set(preference->alignment_a, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
      return set(preference->alignment_b, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
      return set(preference->alignment_c, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
      return set(preference->alignment_d, value, bytes);
  }
  return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int requested,
                                              cublasLtMatmulHeuristicResult_t results[], int* returned) {
  *returned = 0;
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  if (requested <= 0) return CUBLAS_STATUS_INVALID_VALUE;
  const Product product{*desc, *a, *b, *c, *d};
  if (const cublasStatus_t status = check(product); status != CUBLAS_STATUS_SUCCESS) return status;
  const auto [workspace, reductions, a_bytes, b_bytes, c_bytes, d_bytes] = *preference;
  const bool vectors = std::min({a_bytes, b_bytes, c_bytes, d_bytes}) >= kVectorBytes &&
                       keeps_alignment(*a) && keeps_alignment(*b) && keeps_alignment(*c) &&
                       keeps_alignment(*d);
  const uint64_t partial_sums = static_cast<uint64_t>(d->batch) * d->rows * d->cols * sizeof(float);
  const bool splits = product.depth() >= kLongSum && partial_sums <= workspace &&
                      (reductions & CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE) != 0;
  results[0] = {.algo = {.alignment = vectors ? kVectorBytes : static_cast<uint32_t>(size_of(d->type)),
                         .workspace = splits ? partial_sums : 0},
                .workspaceSize = splits ? partial_sums : 0,
                .state = CUBLAS_STATUS_SUCCESS,
                .wavesCount = 1};
  *returned = 1;
  return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void* alpha,
                              const void* a, cublasLtMatrixLayout_t a_layout, const void* b,
                              cublasLtMatrixLayout_t b_layout, const void* beta, const void* c,
                              cublasLtMatrixLayout_t c_layout, void* d, cublasLtMatrixLayout_t d_layout,
                              const cublasLtMatmulAlgo_t* algo, void* workspace, size_t workspace_bytes,
                              cudaStream_t stream) {
  if (handle == nullptr) return CUBLAS_STATUS_NOT_INITIALIZED;
  for (const void* needed : {static_cast<const void*>(desc), alpha, beta, a, b, c,
                             static_cast<const void*>(d), static_cast<const void*>(algo)}) {
    if (needed == nullptr) return CUBLAS_STATUS_INVALID_VALUE;
  }
  int device = 0;
  cudaGetDevice(&device);
  if (device != handle->device) fault("cublasLtMatmul: the handle belongs to another device");
  const Product product{*desc, *a_layout, *b_layout, *c_layout, *d_layout};
  if (const cublasStatus_t status = check(product); status != CUBLAS_STATUS_SUCCESS) return status;
  for (const void* pointer : {a, b, c, static_cast<const void*>(d)}) {
    if (!is_aligned(pointer, algo->alignment)) return CUBLAS_STATUS_INVALID_VALUE;
    expect_on_device(pointer, "an operand", device);
  }
  if (product.has_bias()) expect_on_device(desc->bias, "the bias", device);
  if (algo->workspace > 0) {
    if (workspace_bytes < algo->workspace || !is_aligned(workspace, kWorkspaceAlignment)) {
      return CUBLAS_STATUS_INVALID_VALUE;
    }
    expect_on_device(workspace, "the workspace", device);
  }
  const Work work{product,
                  a,
                  b,
                  c,
                  d,
                  scalar(alpha, desc->scale),
                  scalar(beta, desc->scale),
                  workspace,
                  static_cast<size_t>(algo->workspace)};
  enqueue(stream, [work] { multiply(work); });
  return CUBLAS_STATUS_SUCCESS;
}
