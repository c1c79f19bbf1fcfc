#include "cuda/softmax_cudnn.h"

#include <cudnn.h>

#include <algorithm>
#include <limits>
#include <map>
#include <mutex>

#include "core/error.h"
#include "cuda/runtime.h"

namespace elwise::cuda {
namespace {

void check(cudnnStatus_t status, const char* call) {
  if (status != CUDNN_STATUS_SUCCESS) fail(call, " failed: ", cudnnGetErrorString(status));
}

#define ELWISE_CUDNN_CHECK(call) check((call), #call)

/// The current device's handle, for work on the current stream until the end of the scope: one thread at a
/// time may use it.
class Handle {
 public:
  Handle() : lock_(mutex()) {
    // Never destroyed: cuDNN may have been unloaded by then.
    static auto& handles = *new std::map<int, cudnnHandle_t>;
    const auto [entry, is_new] = handles.try_emplace(current_device());
    if (is_new) ELWISE_CUDNN_CHECK(cudnnCreate(&entry->second));
    handle_ = entry->second;
    ELWISE_CUDNN_CHECK(cudnnSetStream(handle_, current_stream()));
  }
  cudnnHandle_t get() const { return handle_; }

 private:
  static std::mutex& mutex() {
    static std::mutex guard;
    return guard;
  }
  std::lock_guard<std::mutex> lock_;
  cudnnHandle_t handle_ = nullptr;
};

cudnnDataType_t data_type(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return CUDNN_DATA_FLOAT;
    case DType::f64:
      return CUDNN_DATA_DOUBLE;
    case DType::bf16:
      return CUDNN_DATA_BFLOAT16;
    default:
      fail("softmax: expected dtype f32, f64 or bf16, got ", dtype);
  }
}

/// A dense matrix [rows, cols]: cuDNN takes a softmax over the channels of each image.
class Matrix {
 public:
  Matrix(DType dtype, int rows, int cols) {
    ELWISE_CUDNN_CHECK(cudnnCreateTensorDescriptor(&descriptor_));
    ELWISE_CUDNN_CHECK(
        cudnnSetTensor4dDescriptor(descriptor_, CUDNN_TENSOR_NCHW, data_type(dtype), rows, cols, 1, 1));
  }
  ~Matrix() { cudnnDestroyTensorDescriptor(descriptor_); }
  Matrix(const Matrix&) = delete;
  Matrix& operator=(const Matrix&) = delete;

  cudnnTensorDescriptor_t get() const { return descriptor_; }

 private:
  cudnnTensorDescriptor_t descriptor_ = nullptr;
};

/// 1 or 0 as cuDNN takes factors: f64 for f64, else f32.
struct Factor {
  double wide;
  float narrow = static_cast<float>(wide);

  const void* of(DType dtype) const {
    return dtype == DType::f64 ? static_cast<const void*>(&wide) : static_cast<const void*>(&narrow);
  }
};
constexpr Factor kOne{1}, kZero{0};

/// Calls run(handle, matrix, offset in bytes) for as many rows at a time as one tensor of cuDNN, whose
/// elements an int counts, may have.
template <class Run>
void for_each_tensor(DType dtype, int64_t rows, int64_t cols, const Run& run) {
  const int64_t most_rows = std::numeric_limits<int>::max() / cols;
  ELWISE_CHECK(most_rows > 0, "softmax: expected rows of at most ", std::numeric_limits<int>::max(),
               " elements, got ", cols);
  const Handle handle;
  for (int64_t row = 0; row < rows; row += most_rows) {
    const Matrix matrix(dtype, static_cast<int>(std::min(most_rows, rows - row)), static_cast<int>(cols));
    run(handle.get(), matrix.get(), row * cols * size_of(dtype));
  }
}

}  // namespace

void softmax_forward_cudnn(const SoftmaxForward& args) {
  for_each_tensor(args.dtype, args.rows, args.cols,
                  [&](cudnnHandle_t handle, cudnnTensorDescriptor_t matrix, int64_t offset) {
                    ELWISE_CUDNN_CHECK(cudnnSoftmaxForward(
                        handle, CUDNN_SOFTMAX_ACCURATE, CUDNN_SOFTMAX_MODE_INSTANCE, kOne.of(args.dtype),
                        matrix, static_cast<const char*>(args.x) + offset, kZero.of(args.dtype), matrix,
                        static_cast<char*>(args.y) + offset));
                  });
}

void softmax_backward_cudnn(const SoftmaxBackward& args) {
  for_each_tensor(
      args.dtype, args.rows, args.cols,
      [&](cudnnHandle_t handle, cudnnTensorDescriptor_t matrix, int64_t offset) {
        ELWISE_CUDNN_CHECK(cudnnSoftmaxBackward(
            handle, CUDNN_SOFTMAX_ACCURATE, CUDNN_SOFTMAX_MODE_INSTANCE, kOne.of(args.dtype), matrix,
            static_cast<const char*>(args.y) + offset, matrix, static_cast<const char*>(args.dy) + offset,
            kZero.of(args.dtype), matrix, static_cast<char*>(args.dx) + offset));
      });
}

}  // namespace elwise::cuda
