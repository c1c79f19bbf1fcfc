#include "tests/support/cuda/include/cudnn.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/dtype.h"
#include "tests/support/cuda/device_memory.h"

struct cudnnContext {
  cudaStream_t stream = nullptr;
};

struct cudnnTensorStruct {
  cudnnDataType_t type = CUDNN_DATA_FLOAT;
  int64_t rows = 0, cols = 0;

  bool operator==(const cudnnTensorStruct&) const = default;
};

namespace {

using elwise::BFloat16;

/// A tensor's elements as doubles.
class Elements {
 public:
  Elements(cudnnDataType_t type, void* data) : type_(type), data_(data) {}

  double get(int64_t i) const {
    if (type_ == CUDNN_DATA_DOUBLE) return static_cast<double*>(data_)[i];
    if (type_ == CUDNN_DATA_FLOAT) return static_cast<float*>(data_)[i];
    return static_cast<float>(static_cast<BFloat16*>(data_)[i]);
  }
  void set(int64_t i, double value) const {
    const auto narrow = static_cast<float>(value);
    if (type_ == CUDNN_DATA_DOUBLE) static_cast<double*>(data_)[i] = value;
    if (type_ == CUDNN_DATA_FLOAT) static_cast<float*>(data_)[i] = narrow;
    if (type_ == CUDNN_DATA_BFLOAT16) static_cast<BFloat16*>(data_)[i] = BFloat16(narrow);
  }

 private:
  cudnnDataType_t type_;
  void* data_;
};

Elements elements(const cudnnTensorStruct& tensor, const void* data) {
  return {tensor.type, const_cast<void*>(data)};
}

double factor(cudnnDataType_t type, const void* value) {
  return type == CUDNN_DATA_DOUBLE ? *static_cast<const double*>(value) : *static_cast<const float*>(value);
}

/// result = alpha * values + beta * result for each row, whose values row(its first element, values) fills
/// in.
template <class Row>
void write(const cudnnTensorStruct& tensor, const Elements& result, double alpha, double beta,
           const Row& row) {
  std::vector<double> values(static_cast<size_t>(tensor.cols));
  for (int64_t first = 0; first < tensor.rows * tensor.cols; first += tensor.cols) {
    row(first, values);
    for (int64_t c = 0; c < tensor.cols; ++c) {
      const double old = beta == 0 ? 0 : beta * result.get(first + c);
      result.set(first + c, alpha * values[static_cast<size_t>(c)] + old);
    }
  }
}

bool on_device(const void* data) {
  return emulation::DeviceMemory::owner(data) >= 0;
}

}  // namespace

const char* cudnnGetErrorString(cudnnStatus_t status) {
  switch (status) {
    case CUDNN_STATUS_SUCCESS:
      return "CUDNN_STATUS_SUCCESS";
    case CUDNN_STATUS_BAD_PARAM:
      return "CUDNN_STATUS_BAD_PARAM";
    case CUDNN_STATUS_NOT_SUPPORTED:
      return "CUDNN_STATUS_NOT_SUPPORTED";
  }
  return "unknown";
}

cudnnStatus_t cudnnCreate(cudnnHandle_t* handle) {
  *handle = new cudnnContext;
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnDestroy(cudnnHandle_t handle) {
  delete handle;
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnSetStream(cudnnHandle_t handle, cudaStream_t stream) {
  handle->stream = stream;
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnCreateTensorDescriptor(cudnnTensorDescriptor_t* descriptor) {
  *descriptor = new cudnnTensorStruct;
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnDestroyTensorDescriptor(cudnnTensorDescriptor_t descriptor) {
  delete descriptor;
  return CUDNN_STATUS_SUCCESS;
}
cudnnStatus_t cudnnSetTensor4dDescriptor(cudnnTensorDescriptor_t descriptor, cudnnTensorFormat_t,
                                         cudnnDataType_t type, int n, int c, int h, int w) {
  if (n <= 0 || c <= 0 || h <= 0 || w <= 0) return CUDNN_STATUS_BAD_PARAM;
  const int64_t cols = int64_t{c} * h * w;
  if (n > std::numeric_limits<int>::max() / cols) return CUDNN_STATUS_NOT_SUPPORTED;
  *descriptor = {.type = type, .rows = n, .cols = cols};
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnSoftmaxForward(cudnnHandle_t handle, cudnnSoftmaxAlgorithm_t, cudnnSoftmaxMode_t,
                                  const void* alpha, cudnnTensorDescriptor_t x_descriptor, const void* x,
                                  const void* beta, cudnnTensorDescriptor_t y_descriptor, void* y) {
  const cudnnTensorStruct shape = *x_descriptor;
  if (shape != *y_descriptor || !on_device(x) || !on_device(y)) return CUDNN_STATUS_BAD_PARAM;
  const double a = factor(shape.type, alpha), b = factor(shape.type, beta);
  emulation::enqueue(handle->stream, [=, from = elements(shape, x), to = elements(shape, y)] {
    write(shape, to, a, b, [&](int64_t first, std::vector<double>& values) {
      double largest = -INFINITY, sum = 0;
      for (int64_t c = 0; c < shape.cols; ++c) largest = std::max(largest, from.get(first + c));
      for (int64_t c = 0; c < shape.cols; ++c) {
        sum += values[static_cast<size_t>(c)] = std::exp(from.get(first + c) - largest);
      }
      // A row of -infinity alone: NaN in f64, else zeros, as cuDNN gives.
      bool zeros = shape.type != CUDNN_DATA_DOUBLE;
      for (int64_t c = 0; c < shape.cols; ++c) zeros &= from.get(first + c) == -INFINITY;
      for (double& value : values) value = zeros ? 0 : value / sum;
    });
  });
  return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnSoftmaxBackward(cudnnHandle_t handle, cudnnSoftmaxAlgorithm_t, cudnnSoftmaxMode_t,
                                   const void* alpha, cudnnTensorDescriptor_t y_descriptor, const void* y,
                                   cudnnTensorDescriptor_t dy_descriptor, const void* dy, const void* beta,
                                   cudnnTensorDescriptor_t dx_descriptor, void* dx) {
  const cudnnTensorStruct shape = *y_descriptor;
  if (shape != *dy_descriptor || shape != *dx_descriptor || !on_device(y) || !on_device(dy) ||
      !on_device(dx)) {
    return CUDNN_STATUS_BAD_PARAM;
  }
  const double a = factor(shape.type, alpha), b = factor(shape.type, beta);
  emulation::enqueue(handle->stream, [=, weights = elements(shape, y), gradient = elements(shape, dy),
                                      to = elements(shape, dx)] {
    write(shape, to, a, b, [&](int64_t first, std::vector<double>& values) {
      double dot = 0;
      for (int64_t c = 0; c < shape.cols; ++c) dot += weights.get(first + c) * gradient.get(first + c);
      for (int64_t c = 0; c < shape.cols; ++c) {
        values[static_cast<size_t>(c)] = weights.get(first + c) * (gradient.get(first + c) - dot);
      }
    });
  });
  return CUDNN_STATUS_SUCCESS;
}
