#include <cudnn.h>
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "core/storage.h"
#include "cuda/runtime.h"
#include "tests/support/closeness.h"

// The emulated cuDNN knows alpha and beta, and refuses what the real one refuses or dies of.

namespace elwise::cuda {
namespace {

constexpr Device kDevice{DeviceType::cuda, 0};
constexpr int kRows = 2, kCols = 3, kCount = kRows * kCols;

/// A softmax of two rows of f64, and its gradient for dy = x.
struct Call {
  cudnnHandle_t handle = nullptr;
  cudnnTensorDescriptor_t matrix = nullptr, other = nullptr;
  Storage memory{2 * kCount * 8, kDevice};
  std::vector<double> host{0, std::log(2.0), std::log(3.0), 5, 5, 5, 1, 1, 1, 1, 1, 1};  // x, then y
  double* x = static_cast<double*>(memory.data());
  double* y = x + kCount;

  Call() {
    const DeviceGuard device(0);
    CHECK(cudnnCreate(&handle) == CUDNN_STATUS_SUCCESS);
    CHECK(cudnnSetStream(handle, current_stream()) == CUDNN_STATUS_SUCCESS);
    for (auto* descriptor : {&matrix, &other}) {
      CHECK(cudnnCreateTensorDescriptor(descriptor) == CUDNN_STATUS_SUCCESS);
      CHECK(set(*descriptor, CUDNN_DATA_DOUBLE, kRows, kCols) == CUDNN_STATUS_SUCCESS);
    }
    copy_memory(x, kDevice, host.data(), kCpu, 2 * kCount * 8);
  }
  ~Call() {
    cudnnDestroyTensorDescriptor(matrix);
    cudnnDestroyTensorDescriptor(other);
    cudnnDestroy(handle);
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  static cudnnStatus_t set(cudnnTensorDescriptor_t descriptor, cudnnDataType_t type, int rows, int cols) {
    return cudnnSetTensor4dDescriptor(descriptor, CUDNN_TENSOR_NCHW, type, rows, cols, 1, 1);
  }
  cudnnStatus_t forward(const void* from, void* to, double alpha, double beta) const {
    return cudnnSoftmaxForward(handle, CUDNN_SOFTMAX_ACCURATE, CUDNN_SOFTMAX_MODE_INSTANCE, &alpha, matrix,
                               from, &beta, other, to);
  }
  cudnnStatus_t backward(const void* weights, const void* dy, void* dx, double alpha, double beta) const {
    return cudnnSoftmaxBackward(handle, CUDNN_SOFTMAX_ACCURATE, CUDNN_SOFTMAX_MODE_INSTANCE, &alpha, matrix,
                                weights, matrix, dy, &beta, other, dx);
  }
  void check_y(const std::vector<double>& expected) {
    copy_memory(host.data(), kCpu, y, kDevice, kCount * 8);
    host.resize(kCount);
    CHECK(testing::mismatch(host, expected, testing::kF64Tolerance, "y") == "");
  }
};

TEST_CASE("alpha times the softmax and beta times what was there") {
  Call call;
  CHECK(call.forward(call.x, call.y, 2, 0.5) == CUDNN_STATUS_SUCCESS);
  const double third = 1.0 / 3, half = 0.5;
  call.check_y(
      {half + third, half + 2 * third, half + 1, half + 2 * third, half + 2 * third, half + 2 * third});
}

TEST_CASE("alpha times the gradient and beta times what was there") {
  Call call;
  CHECK(call.forward(call.x, call.x, 1, 0) == CUDNN_STATUS_SUCCESS);
  CHECK(call.backward(call.x, call.x, call.y, 36, -1) == CUDNN_STATUS_SUCCESS);
  call.check_y({-1 - 4.0 / 3, -1 - 2.0 / 3, 1, -1, -1, -1});
}

TEST_CASE("calls that are wrong are refused") {
  Call call;
  double on_host[kCount] = {};
  CHECK(call.forward(on_host, call.y, 1, 0) == CUDNN_STATUS_BAD_PARAM);
  CHECK(call.forward(call.x, on_host, 1, 0) == CUDNN_STATUS_BAD_PARAM);
  CHECK(call.backward(call.x, call.y, on_host, 1, 0) == CUDNN_STATUS_BAD_PARAM);
  CHECK(Call::set(call.other, CUDNN_DATA_FLOAT, kRows, kCols) == CUDNN_STATUS_SUCCESS);
  CHECK(call.forward(call.x, call.y, 1, 0) == CUDNN_STATUS_BAD_PARAM);
  CHECK(call.backward(call.x, call.x, call.y, 1, 0) == CUDNN_STATUS_BAD_PARAM);
  CHECK(Call::set(call.other, CUDNN_DATA_DOUBLE, 0, kCols) == CUDNN_STATUS_BAD_PARAM);
  CHECK(Call::set(call.other, CUDNN_DATA_BFLOAT16, 1 << 16, 1 << 15) == CUDNN_STATUS_NOT_SUPPORTED);
  CHECK(std::string(cudnnGetErrorString(CUDNN_STATUS_SUCCESS)) == "CUDNN_STATUS_SUCCESS");
  CHECK(std::string(cudnnGetErrorString(CUDNN_STATUS_BAD_PARAM)) == "CUDNN_STATUS_BAD_PARAM");
  CHECK(std::string(cudnnGetErrorString(CUDNN_STATUS_NOT_SUPPORTED)) == "CUDNN_STATUS_NOT_SUPPORTED");
}

}  // namespace
}  // namespace elwise::cuda
