#include <doctest/doctest.h>

#include <string>
#include <vector>

#include "cuda/launch.cuh"
#include "cuda/vector.cuh"
#include "tests/support/cuda/emulation.h"
#include "tests/support/cuda/traffic/access_counter.h"
#include "tests/support/cuda/traffic/kernel_names.h"

// This file is compiled as the counted kernels are, so that its own kernels show what is counted.

namespace elwise::cuda {
namespace {

using emulation::KernelNames;
using emulation::kSectorBytes;
using emulation::observe_kernels;
using emulation::take_traffic;
using emulation::Traffic;

constexpr int kBlock = 64;

/// Device memory of `count` elements.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count) {
    ELWISE_CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&data_), count * sizeof(T)));
    ELWISE_CUDA_CHECK(cudaMemsetAsync(data_, 0, count * sizeof(T), current_stream()));
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  T* data() const { return data_; }

 private:
  T* data_ = nullptr;
};

/// What a kernel of one block does.
template <auto kKernel, class... Arguments>
Traffic traffic_of(const Arguments&... arguments) {
  take_traffic();
  launch<kKernel>({.grid = 1, .block = kBlock}, arguments...);
  ELWISE_CUDA_CHECK(cudaStreamSynchronize(current_stream()));
  return take_traffic();
}

void check_traffic(const Traffic& traffic, const Traffic& expected) {
  CHECK(traffic.read == expected.read);
  CHECK(traffic.written == expected.written);
  CHECK(traffic.sectors_read == expected.sectors_read);
  CHECK(traffic.sectors_written == expected.sectors_written);
}

/// N elements a thread, `pitch` elements apart, in one access.
template <class T, int N>
__global__ void copy_kernel(const T* x, T* y, int64_t pitch) {
  const int64_t first = int64_t{threadIdx.x} * pitch;
  store(y + first, load<N>(x + first));
}

TEST_CASE("accesses of every width count their bytes, and the sectors that they touch") {
  const DeviceArray<float> x(16 * kBlock), y(16 * kBlock);
  const DeviceArray<__nv_bfloat16> xs(kBlock), ys(kBlock);
  check_traffic(traffic_of<copy_kernel<float, 4>>(x.data(), y.data(), 4), {.read = 16 * kBlock,
                                                                           .written = 16 * kBlock,
                                                                           .sectors_read = 16 * kBlock,
                                                                           .sectors_written = 16 * kBlock});
  check_traffic(traffic_of<copy_kernel<float, 1>>(x.data(), y.data(), 16), {.read = 4 * kBlock,
                                                                            .written = 4 * kBlock,
                                                                            .sectors_read = 32 * kBlock,
                                                                            .sectors_written = 32 * kBlock});
  check_traffic(traffic_of<copy_kernel<float, 16>>(x.data(), y.data(), 16), {.read = 64 * kBlock,
                                                                             .written = 64 * kBlock,
                                                                             .sectors_read = 64 * kBlock,
                                                                             .sectors_written = 64 * kBlock});
  check_traffic(
      traffic_of<copy_kernel<__nv_bfloat16, 1>>(xs.data(), ys.data(), 1),
      {.read = 2 * kBlock, .written = 2 * kBlock, .sectors_read = 2 * kBlock, .sectors_written = 2 * kBlock});
}

/// Every thread reads all elements, through shared memory or not.
template <bool kShared>
__global__ void sum_kernel(const float* x, float* y) {
  __shared__ float values[kBlock];
  const int i = static_cast<int>(threadIdx.x);
  if (kShared) values[i] = x[i];
  __syncthreads();
  float sum = 0;
  for (int j = 0; j < kBlock; ++j) sum += kShared ? values[j] : x[j];
  y[i] = sum;
}

TEST_CASE("what threads read again is asked for again, but not what lies in shared memory") {
  const DeviceArray<float> x(kBlock), y(kBlock);
  Traffic expected{
      .read = 4 * kBlock, .written = 4 * kBlock, .sectors_read = 4 * kBlock, .sectors_written = 4 * kBlock};
  check_traffic(traffic_of<sum_kernel<true>>(x.data(), y.data()), expected);
  expected.read *= kBlock;
  check_traffic(traffic_of<sum_kernel<false>>(x.data(), y.data()), expected);
}

__global__ void count_kernel(int* counter, int64_t* fields) {
  struct Fields {
    int64_t at[3];
  };
  atomicAdd(counter, 1);
  auto* own = reinterpret_cast<Fields*>(fields) + threadIdx.x;
  *own = Fields{{1, 2, 3}};
}

TEST_CASE("atomics count both ways, and structures their size") {
  const DeviceArray<int> counter(1);
  const DeviceArray<int64_t> fields(3 * kBlock);
  const Traffic traffic = traffic_of<count_kernel>(counter.data(), fields.data());
  CHECK(traffic.read >= 4 * kBlock);
  CHECK(traffic.sectors_read == kSectorBytes);
  CHECK(traffic.written == 4 * kBlock + 24 * kBlock);
  CHECK(traffic.sectors_written == kSectorBytes + 24 * kBlock);
}

TEST_CASE("kernels are announced before they run, and have names") {
  const DeviceArray<float> x(4 * kBlock), y(4 * kBlock);
  const KernelNames names;
  std::vector<std::string> seen;
  observe_kernels([&](const void* kernel) { seen.push_back(names.of(kernel)); });
  launch<copy_kernel<float, 4>>({.grid = 1, .block = kBlock}, x.data(), y.data(), 4);
  launch<sum_kernel<true>>({.grid = 1, .block = kBlock}, x.data(), y.data());
  observe_kernels({});
  launch<sum_kernel<true>>({.grid = 1, .block = kBlock}, x.data(), y.data());
  CHECK(seen ==
        std::vector<std::string>{
            "void elwise::cuda::(anonymous namespace)::copy_kernel<float, 4>(float const*, float*, long)",
            "void elwise::cuda::(anonymous namespace)::sum_kernel<true>(float const*, float*)"});
}

}  // namespace
}  // namespace elwise::cuda
