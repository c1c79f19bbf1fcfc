#include "core/roofline.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>

#include "core/cuda_backend.h"
#include "cuda/launch.cuh"
#include "cuda/vector.cuh"
#include "ops/dropout_kernels.h"
#include "ops/matmul_kernels.h"

namespace elwise::cuda {
namespace {

constexpr int64_t kCopyBytesPerMultiprocessor = int64_t{4} << 20;  // more than its share of any cache
constexpr int kBlocksPerMultiprocessor = 8;
constexpr int kChains = 8;  // of each thread: enough to hide the latency of a multiply-add
constexpr int kRounds = 4096;
constexpr int kRuns = 3;  // of each measurement, of which the median counts
constexpr int64_t kProductPerMultiprocessor = int64_t{1} << 17;  // elements of the large product
constexpr int64_t kProductTile = 128;

/// Independent multiply-adds. What they come to is written where it can be no number that they give, so that
/// the compiler must compute it.
template <class T>
__global__ void multiply_adds_kernel(T factor, T term, T* sink) {
  T chains[kChains];
#pragma unroll
  for (int i = 0; i < kChains; ++i) chains[i] = T(i);
#pragma unroll 8
  for (int round = 0; round < kRounds; ++round) {
#pragma unroll
    for (int i = 0; i < kChains; ++i) chains[i] = chains[i] * factor + term;
  }
  T sum = T(0);
#pragma unroll
  for (int i = 0; i < kChains; ++i) sum += chains[i];
  if (sum < T(0)) *sink = sum;
}

/// Reads `count` vectors. What they add up to is written where it is a NaN, which `x` has none of.
__global__ void read_kernel(const float* x, int64_t count, float* sink) {
  constexpr int kWidth = kVectorWidth<float>;
  float sum = 0;
#pragma unroll 8
  for (int64_t i = grid_thread(); i < count; i += grid_threads()) {
    const auto part = load<kWidth>(x + i * kWidth);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) sum += part.at[j];
  }
  if (sum != sum) *sink = sum;
}

class DeviceBuffer {
 public:
  explicit DeviceBuffer(int64_t bytes) { ELWISE_CUDA_CHECK(cudaMalloc(&data_, static_cast<size_t>(bytes))); }
  ~DeviceBuffer() { cudaFree(data_); }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  char* data() const { return static_cast<char*>(data_); }

 private:
  void* data_ = nullptr;
};

class Probe : public RooflineProbe {
 public:
  explicit Probe(int device) : device_(device) {
    // Products of zeros take less power, and less time, than others.
    random_fill({.dtype = DType::bf16,
                 .distribution = Distribution::uniform,
                 .y = from_.data(),
                 .count = copy_bytes_ / size_of(DType::bf16),
                 .a = -1,
                 .b = 1,
                 .stream = {}});
  }

  Roofline measure() override {
    const DeviceGuard guard(device_);
    return {.copy_bytes_per_s = 2.0 * static_cast<double>(copy_bytes_) / seconds_of([&] { copy(); }),
            .f64_flops_per_s = multiply_adds_per_s<double>(),
            .f32_flops_per_s = multiply_adds_per_s<float>(),
            .bf16_flops_per_s = products_per_s()};
  }

  double measure_read_bytes_per_s() override {
    const DeviceGuard guard(device_);
    const int64_t vectors = copy_bytes_ / kVectorBytes;
    return static_cast<double>(copy_bytes_) / seconds_of([&] {
             launch<read_kernel>({.grid = grid_for(vectors), .block = kThreads},
                                 reinterpret_cast<const float*>(from_.data()), vectors,
                                 reinterpret_cast<float*>(to_.data()));
           });
  }

 private:
  template <class Work>
  double seconds_of(const Work& work) const {
    work();  // warm-up
    std::array<double, kRuns> seconds{};
    for (double& run : seconds) {
      start_timer(device_);
      work();
      run = stop_timer(device_);
    }
    std::ranges::sort(seconds);
    return seconds[kRuns / 2];
  }

  void copy() const {
    ELWISE_CUDA_CHECK(cudaMemcpyAsync(to_.data(), from_.data(), static_cast<size_t>(copy_bytes_),
                                      cudaMemcpyDeviceToDevice, current_stream()));
  }

  template <class T>
  double multiply_adds_per_s() const {
    const int blocks = kBlocksPerMultiprocessor * multiprocessors_;
    const double seconds = seconds_of([&] {
      launch<multiply_adds_kernel<T>>({.grid = static_cast<unsigned>(blocks), .block = kThreads}, T(0.999),
                                      T(0.001), reinterpret_cast<T*>(to_.data()));
    });
    return 2.0 * kChains * kRounds * blocks * kThreads / seconds;
  }

  double products_per_s() const {
    const double root = std::sqrt(static_cast<double>(kProductPerMultiprocessor * multiprocessors_));
    const int64_t n = static_cast<int64_t>(root) / kProductTile * kProductTile, matrix = n * n * 2;
    const Matmul product{.dtype = DType::bf16,
                         .a = from_.data(),
                         .b = from_.data() + matrix,
                         .c = to_.data(),
                         .m = n,
                         .n = n,
                         .k = n,
                         .lda = n,
                         .ldb = n,
                         .ldc = n,
                         .transpose_a = false,
                         .transpose_b = true,
                         .workspace = to_.data() + matrix};
    return product.cost().flops / seconds_of([&] { matmul(product); });
  }

  int device_;
  int multiprocessors_ = multiprocessors();
  int64_t copy_bytes_ = kCopyBytesPerMultiprocessor * multiprocessors_;
  DeviceBuffer from_{copy_bytes_}, to_{std::max(copy_bytes_, 2 * kMatmulWorkspaceBytes)};
};

}  // namespace

std::unique_ptr<RooflineProbe> roofline_probe(int device) {
  const DeviceGuard guard(device);
  return std::make_unique<Probe>(device);
}

}  // namespace elwise::cuda
