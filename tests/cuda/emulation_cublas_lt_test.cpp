#include <cublasLt.h>
#include <doctest/doctest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "core/storage.h"
#include "cuda/runtime.h"
#include "tests/support/cuda/emulation.h"

// The emulated cuBLASLt refuses what the real one refuses.

namespace elwise::cuda {
namespace {

constexpr Device kDevice{DeviceType::cuda, 0};
constexpr int64_t kSize = 16;

/// d = a b + bias, f32 [kSize, kSize] each, all right as it is made.
struct Call {
  cublasLtHandle_t handle = nullptr;
  cublasLtMatmulDescOpaque_t desc;
  cublasLtMatrixLayoutOpaque_t a, b, d;
  cublasLtMatmulPreferenceOpaque_t preference;
  cublasLtMatmulHeuristicResult_t result{};
  int found = 0;
  Storage memory{5 * kSize * kSize * 4, kDevice};
  char* a_data = static_cast<char*>(memory.data());
  char* bias = a_data + 3 * kSize * kSize * 4;

  Call() {
    const DeviceGuard device(0);
    CHECK(cublasLtCreate(&handle) == CUBLAS_STATUS_SUCCESS);
    CHECK(cublasLtMatmulDescInit(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F) == CUBLAS_STATUS_SUCCESS);
    for (auto* layout : {&a, &b, &d}) {
      CHECK(cublasLtMatrixLayoutInit(layout, CUDA_R_32F, kSize, kSize, kSize) == CUBLAS_STATUS_SUCCESS);
    }
    CHECK(cublasLtMatmulPreferenceInit(&preference) == CUBLAS_STATUS_SUCCESS);
    CHECK(set(CUBLASLT_MATMUL_DESC_EPILOGUE, uint32_t{CUBLASLT_EPILOGUE_BIAS}) == CUBLAS_STATUS_SUCCESS);
    CHECK(set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias) == CUBLAS_STATUS_SUCCESS);
  }
  ~Call() { cublasLtDestroy(handle); }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  template <class T>
  cublasStatus_t set(cublasLtMatmulDescAttributes_t attribute, T value) {
    return cublasLtMatmulDescSetAttribute(&desc, attribute, &value, sizeof value);
  }
  cublasStatus_t set_alignment(uint32_t bytes) {
    return cublasLtMatmulPreferenceSetAttribute(&preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                                                &bytes, sizeof bytes);
  }
  cublasStatus_t choose() {
    return cublasLtMatmulAlgoGetHeuristic(handle, &desc, &a, &b, &d, &d, &preference, 1, &result, &found);
  }
  cublasStatus_t run(void* workspace = nullptr, size_t bytes = 0) {
    const float one = 1, zero = 0;
    char *b_data = static_cast<char*>(memory.data()) + kSize * kSize * 4,
         *d_data = b_data + kSize * kSize * 4;
    return cublasLtMatmul(handle, &desc, &one, a_data, &a, b_data, &b, &zero, d_data, &d, d_data, &d,
                          &result.algo, workspace, bytes, current_stream());
  }
};

TEST_CASE("a product that is right runs") {
  Call call;
  CHECK(call.choose() == CUBLAS_STATUS_SUCCESS);
  CHECK(call.found == 1);
  CHECK(call.run() == CUBLAS_STATUS_SUCCESS);
  CHECK(call.set(CUBLASLT_MATMUL_DESC_TRANSA, int32_t{CUBLAS_OP_T}) == CUBLAS_STATUS_SUCCESS);
  CHECK(call.run() == CUBLAS_STATUS_SUCCESS);
}

TEST_CASE("attributes are set by their size") {
  Call call;
  CHECK(call.set(CUBLASLT_MATMUL_DESC_TRANSA, int64_t{0}) == CUBLAS_STATUS_INVALID_VALUE);
  CHECK(cublasLtMatmulDescSetAttribute(&call.desc, CUBLASLT_MATMUL_DESC_TRANSA, nullptr, 4) ==
        CUBLAS_STATUS_INVALID_VALUE);
  const int64_t batch = 2;
  CHECK(cublasLtMatrixLayoutSetAttribute(&call.a, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch, sizeof batch) ==
        CUBLAS_STATUS_INVALID_VALUE);
}

TEST_CASE("matrices that do not fit together are refused") {
  Call call;
  REQUIRE(call.choose() == CUBLAS_STATUS_SUCCESS);
  SUBCASE("rows") {
    call.a.rows = kSize - 1;
  }
  SUBCASE("inner sizes") {
    call.a.cols = kSize - 1;
  }
  SUBCASE("row strides") {
    call.b.ld = kSize - 1;
  }
  SUBCASE("batches") {
    call.b.batch = 2;
  }
  SUBCASE("no batch") {
    call.a.batch = call.b.batch = call.d.batch = 0;
  }
  SUBCASE("types") {
    call.b.type = CUDA_R_16BF;
  }
  SUBCASE("an unknown transpose") {
    call.desc.transpose_a = 7;
  }
  SUBCASE("no bias") {
    call.desc.bias = nullptr;
  }
  CHECK(call.run() == CUBLAS_STATUS_INVALID_VALUE);
  CHECK(call.choose() == CUBLAS_STATUS_INVALID_VALUE);
  CHECK(call.found == 0);
}

TEST_CASE("what there is no kernel for is not supported") {
  Call call;
  SUBCASE("an unknown epilogue") {
    call.desc.epilogue = 3;
  }
  SUBCASE("f64 sums of f32") {
    call.desc.compute = CUBLAS_COMPUTE_64F;
  }
  CHECK(call.choose() == CUBLAS_STATUS_NOT_SUPPORTED);
  CHECK(call.run() == CUBLAS_STATUS_NOT_SUPPORTED);
}

TEST_CASE("an algorithm for aligned pointers refuses others") {
  Call call;
  REQUIRE(call.choose() == CUBLAS_STATUS_SUCCESS);
  call.a_data += 4;
  CHECK(call.run() == CUBLAS_STATUS_INVALID_VALUE);
  CHECK(call.set_alignment(4) == CUBLAS_STATUS_SUCCESS);
  REQUIRE(call.choose() == CUBLAS_STATUS_SUCCESS);
  CHECK(call.run() == CUBLAS_STATUS_SUCCESS);
}

TEST_CASE("an algorithm that splits a long sum needs its workspace, aligned") {
  constexpr size_t kBytes = size_t{64} << 10;
  const Storage long_matrices(2 * 1024 * kSize * 4, kDevice), workspace(kBytes + 256, kDevice);
  Call call;
  call.a.cols = call.b.rows = 1024;
  call.b.ld = 1024;
  call.a_data = static_cast<char*>(long_matrices.data());
  const auto limit = uint64_t{kBytes};
  CHECK(cublasLtMatmulPreferenceSetAttribute(&call.preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                             &limit, sizeof limit) == CUBLAS_STATUS_SUCCESS);
  REQUIRE(call.choose() == CUBLAS_STATUS_SUCCESS);
  CHECK(call.result.workspaceSize > 0);
  const auto address = reinterpret_cast<uintptr_t>(workspace.data());
  auto* aligned = reinterpret_cast<char*>((address + 255) / 256 * 256);
  CHECK(call.run(aligned, 0) == CUBLAS_STATUS_INVALID_VALUE);
  CHECK(call.run(aligned + 64, kBytes) == CUBLAS_STATUS_INVALID_VALUE);
}

TEST_CASE("operands that are not the device's are reported") {
  Call call;
  REQUIRE(call.choose() == CUBLAS_STATUS_SUCCESS);
  std::vector<float> host(kSize * kSize);
  call.a_data = reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(host.data()) / 16 * 16);
  CHECK_THROWS_WITH_AS(call.run(), "cublasLtMatmul: an operand is not memory of device 0", emulation::Fault);
  const DeviceGuard other(1);
  CHECK_THROWS_WITH_AS(call.run(), "cublasLtMatmul: the handle belongs to another device", emulation::Fault);
}

}  // namespace
}  // namespace elwise::cuda
