#include "tests/support/cuda/emulation.h"

#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "core/storage.h"
#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"

// The emulation finds what it is there to find: small kernels with a deliberate mistake must fail, in one
// thread order at least.

namespace elwise::cuda {
namespace {

using emulation::Order;
using emulation::Streams;

constexpr int kBlock = 64;

/// The message of the fault that `work` ends in, or "".
std::string fault_of(const std::function<void()>& work) {
  try {
    work();
    ELWISE_CUDA_CHECK(cudaStreamSynchronize(current_stream()));
  } catch (const emulation::Fault& fault) {
    return fault.what();
  }
  return "";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

/// Device memory of floats, and copies of it.
class DeviceFloats {
 public:
  explicit DeviceFloats(const std::vector<float>& values) : count_(values.size()), pinned_(bytes()) {
    ELWISE_CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&data_), count_ * sizeof(float)));
    std::copy(values.begin(), values.end(), reinterpret_cast<float*>(pinned_.data()));
    ELWISE_CUDA_CHECK(cudaMemcpyAsync(data_, pinned_.data(), count_ * sizeof(float), cudaMemcpyHostToDevice,
                                      current_stream()));
  }
  explicit DeviceFloats(size_t count) : count_(count), pinned_(bytes()) {
    ELWISE_CUDA_CHECK(cudaMalloc(reinterpret_cast<void**>(&data_), count_ * sizeof(float)));
  }
  ~DeviceFloats() { cudaFree(data_); }
  DeviceFloats(const DeviceFloats&) = delete;
  DeviceFloats& operator=(const DeviceFloats&) = delete;

  float* data() const { return data_; }
  std::vector<float> values() const {
    std::vector<float> result(count_);
    ELWISE_CUDA_CHECK(cudaMemcpyAsync(result.data(), data_, count_ * sizeof(float), cudaMemcpyDeviceToHost,
                                      current_stream()));
    ELWISE_CUDA_CHECK(cudaStreamSynchronize(current_stream()));
    return result;
  }

 private:
  int64_t bytes() const { return static_cast<int64_t>(count_ * sizeof(float)); }
  size_t count_;
  PinnedBuffer pinned_;
  float* data_ = nullptr;
};

/// Sets the thread order, and eager or lazy streams, until the end of the scope.
class ModeGuard {
 public:
  ModeGuard(Order order, Streams streams) : previous_(emulation::streams()), order_(emulation::order()) {
    emulation::set_order(order);
    emulation::set_streams(streams);
  }
  ~ModeGuard() {
    emulation::set_order(order_);
    emulation::set_streams(previous_);
  }
  ModeGuard(const ModeGuard&) = delete;
  ModeGuard& operator=(const ModeGuard&) = delete;

 private:
  Streams previous_;
  Order order_;
};

/// Reverses a block's elements through shared memory; without the barrier a thread reads what its partner may
/// not have written.
template <bool kWithBarrier>
__global__ void reverse_kernel(const float* x, float* y) {
  __shared__ float values[kBlock];
  const auto i = static_cast<int>(threadIdx.x);
  values[i] = x[i];
  if (kWithBarrier) __syncthreads();
  y[i] = values[kBlock - 1 - i];
}

template <bool kWithBarrier>
bool reverses(Order order) {
  const ModeGuard mode(order, Streams::eager);
  std::vector<float> values, reversed;
  const float first = static_cast<float>(order) + 0.5F;  // shared memory still holds the last kernel's values
  for (int i = 0; i < kBlock; ++i) {
    values.push_back(first + 3 * static_cast<float>(i));
    reversed.insert(reversed.begin(), values.back());
  }
  const DeviceFloats x(values), y(values.size());
  launch<reverse_kernel<kWithBarrier>>({.grid = 1, .block = kBlock}, x.data(), y.data());
  return y.values() == reversed;
}

TEST_CASE("a removed barrier gives a wrong result in each thread order") {
  for (const Order order : {Order::forward, Order::reverse, Order::shuffled}) {
    CHECK(reverses<true>(order));
    CHECK_FALSE(reverses<false>(order));
  }
}

/// Running sums over chunks of kBlock rows: a block adds the total of the chunks before it, or, wrongly, only
/// that of the last one.
template <bool kAllChunks>
__global__ void add_carry_kernel(const float* totals, float* y) {
  float carry = 0;
  const auto chunk = static_cast<int>(blockIdx.x);
  for (int i = kAllChunks ? 0 : max(chunk - 1, 0); i < chunk; ++i) carry += totals[i];
  y[chunk * kBlock + static_cast<int>(threadIdx.x)] += carry;
}

TEST_CASE("a wrong chunk carry gives a wrong result from the third chunk on") {
  const auto last_sums = [](auto add_carry) {
    const DeviceFloats totals({1, 2, 4}), y(std::vector<float>(3 * kBlock, 0.25F));
    add_carry(totals.data(), y.data());
    const std::vector<float> values = y.values();
    return std::vector<float>{values[0], values[kBlock], values[2 * kBlock]};
  };
  const LaunchShape shape{.grid = 3, .block = kBlock};
  CHECK(last_sums([&](float* totals, float* y) { launch<add_carry_kernel<true>>(shape, totals, y); }) ==
        std::vector{0.25F, 1.25F, 3.25F});
  CHECK(last_sums([&](float* totals, float* y) { launch<add_carry_kernel<false>>(shape, totals, y); }) ==
        std::vector{0.25F, 1.25F, 2.25F});
}

__global__ void double_kernel(float* x) {
  x[threadIdx.x] *= 2;
}

/// x doubled on one stream, then on another, with or without the event between them.
std::vector<float> doubled_on_two_streams(Streams mode, bool with_wait) {
  const ModeGuard guard(Order::forward, mode);
  const DeviceFloats x(std::vector<float>(kBlock, 3)), y(kBlock);
  const Stream other;
  Event doubled, copied;
  copied.record(current_stream());
  {
    const StreamGuard use(other);
    copied.block(other.handle());
    launch<double_kernel>({.grid = 1, .block = kBlock}, x.data());
    doubled.record(other.handle());
  }
  if (with_wait) doubled.block(current_stream());
  return x.values();
}

TEST_CASE("a removed stream wait shows on lazy streams") {
  const std::vector<float> expected(kBlock, 6);
  CHECK(doubled_on_two_streams(Streams::eager, true) == expected);
  CHECK(doubled_on_two_streams(Streams::lazy, true) == expected);
  CHECK(doubled_on_two_streams(Streams::eager, false) == expected);
  CHECK(doubled_on_two_streams(Streams::lazy, false) != expected);
}

__global__ void half_barrier_kernel() {
  if (threadIdx.x < kBlock / 2) __syncthreads();
}

__global__ void two_barriers_kernel() {
  if (threadIdx.x < kBlock / 2) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

TEST_CASE("a barrier that not all threads reach is reported with its place") {
  const std::string missing = fault_of([] { launch<half_barrier_kernel>({.grid = 1, .block = kBlock}); });
  CHECK(contains(missing, "ended without the barrier of "));
  CHECK(contains(missing, "emulation_test.cpp:"));
  const std::string split = fault_of([] { launch<two_barriers_kernel>({.grid = 1, .block = kBlock}); });
  CHECK(contains(split, " waits at the barrier of "));
}

__global__ void absent_lane_kernel(float* x) {
  const auto lane = static_cast<int>(threadIdx.x);
  if (lane < 16) x[lane] = __shfl_down_sync(0x0000'FFFF, x[lane], 8);
}

__global__ void foreign_mask_kernel(float* x) {
  x[threadIdx.x] = __shfl_xor_sync(0x0000'FFFF, x[threadIdx.x], 1);
}

__global__ void missing_lane_kernel(float* x) {
  if (threadIdx.x != 5) x[threadIdx.x] = reduce_warp(x[threadIdx.x]);
  __syncthreads();
}

TEST_CASE("shuffles with lanes that take no part are reported") {
  const DeviceFloats x(std::vector<float>(32, 1));
  const LaunchShape shape{.grid = 1, .block = 32};
  CHECK(contains(fault_of([&] { launch<absent_lane_kernel>(shape, x.data()); }), ", which takes no part"));
  CHECK(contains(fault_of([&] { launch<foreign_mask_kernel>(shape, x.data()); }),
                 "the lane is not in its own mask"));
  CHECK(contains(fault_of([&] { launch<missing_lane_kernel>(shape, x.data()); }),
                 "waits for lanes that never come"));
}

__global__ void copy_kernel(const float* x, float* y) {
  y[threadIdx.x] = x[threadIdx.x];
}

TEST_CASE("fresh device memory and dynamic shared memory hold NaN") {
  const DeviceFloats fresh(kBlock), y(kBlock);
  launch<copy_kernel>({.grid = 1, .block = kBlock}, fresh.data(), y.data());
  for (const float value : y.values()) CHECK(std::isnan(value));
}

TEST_CASE("an invalid launch is an error that names the kernel") {
  std::string message;
  try {
    launch<double_kernel>({.grid = 1, .block = 2048}, nullptr);
  } catch (const Error& error) {
    message = error.what();
  }
  CHECK(contains(message, "double_kernel"));
  CHECK(contains(message, "invalid configuration argument (grid 1 x 1 x 1, block 2048 x 1 x 1"));
}

TEST_CASE("host memory that is not pinned must not be the source of an asynchronous copy") {
  const DeviceFloats x(kBlock);
  std::vector<float> pageable(kBlock);
  const std::string message = fault_of([&] {
    cudaMemcpyAsync(x.data(), pageable.data(), kBlock * sizeof(float), cudaMemcpyHostToDevice,
                    current_stream());
  });
  CHECK(contains(message, "not pinned"));
}

/// How a process that runs `work` ends, and what it writes to stderr.
struct Death {
  int signal = 0;
  std::string message;
};
Death death_of(const std::function<void()>& work) {
  std::array<int, 2> ends{};
  REQUIRE(pipe(ends.data()) == 0);
  const pid_t child = fork();
  if (child == 0) {
    std::signal(SIGSEGV, SIG_DFL);  // doctest's handler would report the end of the whole run
    dup2(ends[1], STDERR_FILENO);
    work();
    _exit(0);
  }
  close(ends[1]);
  Death death;
  std::array<char, 256> part{};
  for (ssize_t count; (count = ::read(ends[0], part.data(), part.size())) > 0;) {
    death.message.append(part.data(), static_cast<size_t>(count));
  }
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  if (WIFSIGNALED(status)) death.signal = WTERMSIG(status);
  return death;
}

TEST_CASE("a host that uses device memory dies, and is told why") {
  const DeviceFloats x(kBlock);
  const Death death = death_of([&] {
    const DeviceFloats last(1);  // whatever ran before: the memory is closed from here on
    *static_cast<volatile float*>(x.data()) = 1;
  });
  CHECK(death.signal == SIGSEGV);
  CHECK(death.message == "emulation: the host used device memory\n");
}

TEST_CASE("an event keeps its place in a stream's work when it is destroyed before that is done") {
  const ModeGuard guard(Order::forward, Streams::lazy);
  const DeviceFloats x(std::vector<float>(kBlock, 3));
  const Stream other;
  {
    Event uploaded, doubled;
    uploaded.record(current_stream());
    uploaded.block(other.handle());
    {
      const StreamGuard use(other);
      launch<double_kernel>({.grid = 1, .block = kBlock}, x.data());
    }
    doubled.record(other.handle());
    doubled.block(current_stream());
  }
  CHECK(x.values() == std::vector<float>(kBlock, 6));
}

TEST_CASE("work for a destroyed stream is reported") {
  cudaStream_t stream = nullptr;
  ELWISE_CUDA_CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  ELWISE_CUDA_CHECK(cudaStreamDestroy(stream));
  Event event;
  CHECK(contains(fault_of([&] { event.record(stream); }), "a stream that was destroyed"));
}

/// Hides the devices until the end of the scope.
class NoDevices {
 public:
  NoDevices() { setenv("CUDA_VISIBLE_DEVICES", "", 1); }
  ~NoDevices() { unsetenv("CUDA_VISIBLE_DEVICES"); }
  NoDevices(const NoDevices&) = delete;
  NoDevices& operator=(const NoDevices&) = delete;
};

TEST_CASE("without a device every use of one says so") {
  const NoDevices none;
  CHECK(cuda_device_count() == 0);
  CHECK_THROWS_WITH_AS(check_available({DeviceType::cuda, 0}),
                       "no CUDA device: no CUDA-capable device is detected", Error);
  CHECK_THROWS_WITH_AS(Storage(64, {DeviceType::cuda, 0}),
                       "no CUDA device: no CUDA-capable device is detected", Error);
}

TEST_CASE("memory that is not freed is counted") {
  const int64_t before = emulation::live_allocations();
  {
    const DeviceFloats x(kBlock);
    CHECK(emulation::live_allocations() == before + 1);
  }
  CHECK(emulation::live_allocations() == before);
}

}  // namespace
}  // namespace elwise::cuda
