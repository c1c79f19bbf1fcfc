#include "cuda/runtime.h"

#include <doctest/doctest.h>

#include <cstdint>
#include <latch>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "core/cuda_backend.h"
#include "core/random.h"
#include "ops/dropout.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "tests/support/op_test.h"

// The CUDA runtime as the library uses it; the same on emulated and on real GPUs.

namespace elwise::cuda {
namespace {

using Bytes = std::vector<uint8_t>;

constexpr Device kDevice{DeviceType::cuda, 0}, kOtherDevice{DeviceType::cuda, 1};
constexpr int64_t kStaging = int64_t{4} << 20;

Bytes pattern(int64_t bytes, int64_t seed = 1) {
  Bytes result(static_cast<size_t>(bytes));
  for (int64_t i = 0; i < bytes; ++i)
    result[static_cast<size_t>(i)] = static_cast<uint8_t>(i * 37 + i / 256 + seed);
  return result;
}

char* start_of(const Storage& storage, int64_t offset = 0) {
  return static_cast<char*>(storage.data()) + offset;
}

Bytes read(const Storage& storage, int64_t bytes, int64_t offset = 0) {
  Bytes result(static_cast<size_t>(bytes));
  copy_memory(result.data(), kCpu, start_of(storage, offset), storage.device(), bytes);
  return result;
}

void set(const Storage& storage, int value, cudaStream_t stream) {
  ELWISE_CUDA_CHECK(cudaMemsetAsync(storage.data(), value, static_cast<size_t>(storage.bytes()), stream));
}

TEST_CASE("copies of all sizes and offsets arrive, whatever happens to their source meanwhile") {
  for (const int64_t bytes : {int64_t{1}, int64_t{3}, int64_t{64}, int64_t{4095}, kStaging - 1, kStaging,
                              kStaging + 1, 2 * kStaging + 77}) {
    for (const int64_t offset : {0, 1}) {
      const Storage on_device(bytes + offset, kDevice);
      Bytes source = pattern(bytes);
      copy_memory(start_of(on_device, offset), kDevice, source.data(), kCpu, bytes);
      source.assign(source.size(), 0);
      CHECK_MESSAGE(read(on_device, bytes, offset) == pattern(bytes), bytes, " bytes from ", offset);
    }
  }
}

TEST_CASE("uploads that wait for the device each keep their bytes") {
  constexpr int64_t kBytes = kStaging + 5;
  std::vector<std::unique_ptr<Storage>> uploads;
  for (int64_t i = 0; i < 6; ++i) {
    uploads.push_back(std::make_unique<Storage>(kBytes, kDevice));
    copy_memory(uploads.back()->data(), kDevice, pattern(kBytes, i).data(), kCpu, kBytes);
  }
  for (int64_t i = 0; i < 6; ++i) CHECK(read(*uploads[static_cast<size_t>(i)], kBytes) == pattern(kBytes, i));
}

TEST_CASE("copies on a device and between devices") {
  const int64_t bytes = 3 * kStaging + 11;
  for (const Device target : {kDevice, kOtherDevice}) {
    if (target.index >= device_count()) continue;
    const Storage first(bytes, kDevice), second(bytes, target), third(bytes, kDevice);
    copy_memory(first.data(), kDevice, pattern(bytes).data(), kCpu, bytes);
    copy_memory(second.data(), target, first.data(), kDevice, bytes);
    copy_memory(third.data(), kDevice, second.data(), target, bytes);
    CHECK(read(second, bytes) == pattern(bytes));
    CHECK(read(third, bytes) == pattern(bytes));
  }
}

TEST_CASE("a stream's work comes after an event of another's") {
  const DeviceGuard device(0);
  const Stream writer;
  const Storage storage(kStaging, kDevice);
  Event made, written;
  made.record(current_stream());
  made.block(writer.handle());
  for (const int value : {1, 2, 3}) set(storage, value, writer.handle());
  written.record(writer.handle());
  written.block(current_stream());
  CHECK(read(storage, kStaging) == Bytes(kStaging, 3));
  CHECK(written.done());
}

TEST_CASE("events tell when a stream's work was done") {
  const DeviceGuard device(0);
  const Storage storage(kStaging, kDevice);
  Event begin(Event::Timing::on), end(Event::Timing::on);
  CHECK(begin.done());  // nothing was recorded yet
  begin.record(current_stream());
  set(storage, 1, current_stream());
  end.record(current_stream());
  end.synchronize();
  CHECK(begin.done());
  CHECK(end.done());
  CHECK(end.milliseconds_since(begin) >= 0);
}

TEST_CASE("a StreamGuard chooses the thread's stream of its device, and no other's") {
  const DeviceGuard device(0);
  const cudaStream_t shared = current_stream();
  {
    const Stream first, second;
    CHECK(first.handle() != second.handle());
    const StreamGuard outer(first);
    CHECK(current_stream() == first.handle());
    {
      const StreamGuard inner(second);
      CHECK(current_stream() == second.handle());
    }
    CHECK(current_stream() == first.handle());
    std::thread([&] { CHECK(current_stream() == shared); }).join();
    if (device_count() > 1) {
      const DeviceGuard other(1);
      CHECK(current_stream() != first.handle());
      CHECK(current_stream() != shared);
    }
  }
  CHECK(current_stream() == shared);
}

TEST_CASE("a DeviceGuard gives the device back") {
  if (device_count() < 2) return;
  set_device(0);
  {
    const DeviceGuard outer(1);
    CHECK(current_device() == 1);
    const Stream there;
    CHECK(there.device() == 1);
    const DeviceGuard inner(0);
    CHECK(current_device() == 0);
    const StreamGuard use(there);
    CHECK(current_device() == 1);
  }
  CHECK(current_device() == 0);
}

TEST_CASE("errors name the call, its place and CUDA's reason") {
  std::string message;
  try {
    ELWISE_CUDA_CHECK(cudaSetDevice(4711));
  } catch (const Error& error) {
    message = error.what();
  }
  const std::string expected =
      "cudaSetDevice(4711) failed: invalid device ordinal (cudaErrorInvalidDevice), cuda/runtime_test.cpp:" +
      std::to_string(__LINE__ - 6);
  CHECK(message == expected);
  CHECK(cudaGetLastError() == cudaSuccess);
}

TEST_CASE("a device that is not there is an error that says which there are") {
  const Device absent{DeviceType::cuda, 4711};
  testing::check_error(
      [&] { Storage(64, absent); },
      "no CUDA device: expected cuda:0 .. cuda:" + std::to_string(device_count() - 1) + ", got cuda:4711");
}

TEST_CASE("workspaces belong to a thread and a stream") {
  const DeviceGuard device(0);
  char* mine = static_cast<char*>(workspace(kWorkspaceBytes));
  CHECK(workspace(1) == mine);
  {
    const Stream other;
    const StreamGuard use(other);
    CHECK(workspace(1) != mine);
  }
  std::thread([&] { CHECK(workspace(1) != mine); }).join();
  CHECK(workspace(1) == mine);
  testing::check_error([] { workspace(kWorkspaceBytes + 1); },
                       "cuda: a kernel asked for 8388609 bytes of workspace, there are 8388608");
  release_workspaces();
}

/// Writes what a kernel would write, as a part of the current stream's work.
void report_fault(const InputFault& fault, const PinnedBuffer& buffer) {
  auto* pinned = new (buffer.data()) InputFault(fault);
  ELWISE_CUDA_CHECK(
      cudaMemcpyAsync(input_fault(), pinned, sizeof fault, cudaMemcpyHostToHost, current_stream()));
}

TEST_CASE("what a kernel finds wrong with its input is thrown where the host waits, once") {
  const DeviceGuard device(0);
  const PinnedBuffer buffer(sizeof(InputFault));
  const InputFault fault{
      .found = 1, .kernel = static_cast<int>(IndexKernel::gather), .index = -7, .position = 5, .size = 3};
  const std::string message = "gather: index -7 at 5 is outside [0, 3)";
  elwise::synchronize(kDevice);
  report_fault(fault, buffer);
  testing::check_error([] { elwise::synchronize(kDevice); }, message);
  elwise::synchronize(kDevice);
  const Storage storage(64, kDevice);
  report_fault(fault, buffer);
  testing::check_error([&] { read(storage, 64); }, message);
  read(storage, 64);
}

/// A few steps of different kernels, with random numbers of its own; the last result.
std::vector<float> train(uint64_t seed) {
  Generator generator(seed);
  const Tensor x = empty({33, 48}, {.device = kDevice}), weight = empty({48, 48}, {.device = kDevice});
  fill_uniform(x, -1, 1, generator);
  fill_normal(weight, 0, 0.1, generator);
  Tensor y = x;
  for (int step = 0; step < 8; ++step) {
    y = matmul(y, weight, {.transpose_b = step % 2 == 1});
    const Tensor noise = empty(y.shape(), y.options());
    fill_uniform(noise, 0, 1, generator);
    y = matmul(y, noise, {.transpose_a = true});
    y = matmul(x, matmul(y, weight));
  }
  return y.to_vector<float>();
}

TEST_CASE("threads that use a device at once get what each gets alone") {
  constexpr size_t kThreads = 3;
  std::vector<std::vector<float>> alone, together(kThreads);
  for (size_t i = 0; i < kThreads; ++i) alone.push_back(train(i));
  for (const bool own_streams : {false, true}) {
    std::latch start(kThreads);
    std::vector<std::thread> threads;
    for (size_t i = 0; i < kThreads; ++i) {
      threads.emplace_back([&, i] {
        const DeviceGuard device(0);
        std::optional<Stream> stream;
        std::optional<StreamGuard> use;
        if (own_streams) use.emplace(stream.emplace());
        start.arrive_and_wait();
        together[i] = train(i);
      });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK(together == alone);
  }
}

}  // namespace
}  // namespace elwise::cuda
