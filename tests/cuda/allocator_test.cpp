#include "core/allocator.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "core/cuda_backend.h"
#include "core/storage.h"
#include "cuda/runtime.h"

// The device's allocator: what it counts, what it keeps, and when a block may be handed on.

namespace elwise::cuda {
namespace {

constexpr Device kDevice{DeviceType::cuda, 0};
constexpr int64_t kKiB = 1024, kMiB = 1024 * kKiB;

int64_t in_use() {
  return memory_stats(kDevice).total.now;
}
/// What the allocator has taken from the device.
int64_t held() {
  return in_use() + memory_stats(kDevice).cached;
}

int64_t free_on_device() {
  const DeviceGuard device(0);
  size_t free = 0, total = 0;
  ELWISE_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  return static_cast<int64_t>(free);
}

void set(const Storage& storage, int value) {
  ELWISE_CUDA_CHECK(
      cudaMemsetAsync(storage.data(), value, static_cast<size_t>(storage.bytes()), current_stream()));
}

void copy_on_stream(const Storage& to, const Storage& from) {
  ELWISE_CUDA_CHECK(cudaMemcpyAsync(to.data(), from.data(), static_cast<size_t>(to.bytes()),
                                    cudaMemcpyDeviceToDevice, current_stream()));
}

bool holds_only(const Storage& storage, uint8_t value) {
  std::vector<uint8_t> bytes(static_cast<size_t>(storage.bytes()));
  copy_memory(bytes.data(), kCpu, storage.data(), kDevice, storage.bytes());
  return std::ranges::all_of(bytes, [=](uint8_t byte) { return byte == value; });
}

/// Sets the device's memory limit until the end of the scope.
class LimitGuard {
 public:
  explicit LimitGuard(int64_t bytes) : previous_(memory_limit(kDevice)) { set_memory_limit(kDevice, bytes); }
  ~LimitGuard() { set_memory_limit(kDevice, previous_); }
  LimitGuard(const LimitGuard&) = delete;
  LimitGuard& operator=(const LimitGuard&) = delete;

 private:
  int64_t previous_;
};

/// What a few buffers of each tag, made, retagged and freed, add to a device's counts.
std::vector<int64_t> counts_of_a_step(Device device) {
  reset_memory_peak(device);
  const MemoryStats before = memory_stats(device);
  {
    const MemoryTagGuard parameters(MemoryTag::parameters);
    const Storage weight(1000, device), bias(1, device);
    std::vector<std::unique_ptr<Storage>> saved;
    {
      const MemoryTagGuard activations(MemoryTag::activations);
      for (const int64_t bytes : {3 * kMiB, 65 * kKiB, int64_t{130}}) {
        saved.push_back(std::make_unique<Storage>(bytes, device));
      }
      const Storage temporary(2 * kMiB + 1, device);
    }
    saved[0]->set_tag(MemoryTag::gradients);
    saved.erase(saved.begin() + 1);
    const MemoryTagGuard optimizer(MemoryTag::optimizer);
    const Storage moments(2000, device);
  }
  const MemoryStats after = memory_stats(device);
  std::vector<int64_t> counts{after.total.now - before.total.now, after.total.peak - before.total.now};
  for (int tag = 0; tag < kMemoryTags; ++tag) {
    const MemoryCount &then = before[static_cast<MemoryTag>(tag)], &now = after[static_cast<MemoryTag>(tag)];
    counts.push_back(now.now - then.now);
    counts.push_back(now.peak - then.now);
  }
  return counts;
}

TEST_CASE("buffers are counted as on the CPU and on meta, to the byte") {
  const std::vector<int64_t> on_cpu = counts_of_a_step(kCpu);
  CHECK(on_cpu[0] == 0);
  CHECK(on_cpu[1] >= 5 * kMiB);
  CHECK(counts_of_a_step(kDevice) == on_cpu);
  CHECK(counts_of_a_step(kMeta) == on_cpu);
}

TEST_CASE("a freed block is handed out again, to its own stream") {
  const DeviceGuard device(0);
  empty_memory_cache(kDevice);
  std::optional<Storage> block(std::in_place, 100 * kMiB, kDevice);
  const void* address = block->data();
  const int64_t with_block = held();
  block.reset();
  CHECK(held() == with_block);
  {
    const Stream other;
    const StreamGuard use(other);
    const Storage elsewhere(100 * kMiB, kDevice);
    CHECK(elsewhere.data() != address);
  }
  const Storage again(100 * kMiB, kDevice);
  CHECK(again.data() == address);
}

TEST_CASE("an emptied cache is the device's again") {
  empty_memory_cache(kDevice);
  const int64_t held_before = held();
  { const Storage large(100 * kMiB, kDevice), small(100, kDevice); }
  CHECK(held() >= held_before + 100 * kMiB);
  const int64_t free_beside_cache = free_on_device();
  empty_memory_cache(kDevice);
  CHECK(held() == held_before);
  CHECK(free_on_device() >= free_beside_cache + 100 * kMiB);
}

TEST_CASE("an allocation past the limit is refused with the numbers, after the cache was tried") {
  empty_memory_cache(kDevice);
  REQUIRE(in_use() == 0);
  const LimitGuard limit(8 * kMiB);
  { const Storage cached(5 * kMiB, kDevice); }
  const Storage first(6 * kMiB, kDevice);  // beside what was cached it would pass the limit
  CHECK(held() <= 8 * kMiB);
  const MemoryTagGuard tag(MemoryTag::gradients);
  const Storage second(100, kDevice);
  const std::string message =
      "out of memory on cuda:0: 3.00 MiB more would pass the limit (limit 8.00 MiB); in use 6.00 MiB: "
      "activations 6.00 MiB, parameters 0 B, gradients 128 B, optimizer 0 B";
  CHECK_THROWS_WITH_AS(Storage(3 * kMiB, kDevice), message.c_str(), OutOfMemoryError);
  CHECK(in_use() == 6 * kMiB + 128);
}

TEST_CASE("what the device does not have is an error, and the next allocation works") {
  const LimitGuard none(0);
  CHECK_THROWS_WITH_AS(
      Storage(kMiB * kMiB * 1024, kDevice),
      doctest::Contains("out of memory on cuda:0: 1024.00 TiB more would pass what the system"),
      OutOfMemoryError);
  const DeviceGuard device(0);
  const Storage storage(kMiB, kDevice);
  set(storage, 7);
  CHECK(holds_only(storage, 7));
}

TEST_CASE("a block that another stream still uses is handed on only after that") {
  const DeviceGuard device(0);
  const Stream reader;
  const Storage copy(4 * kMiB, kDevice);
  std::optional<Storage> block(std::in_place, 4 * kMiB, kDevice);
  const void* address = block->data();
  set(*block, 1);
  Event written;
  written.record(current_stream());
  {
    const StreamGuard use(reader);
    written.block(reader.handle());
    copy_on_stream(copy, *block);
    record_use(block->data(), reader.handle());
  }
  block.reset();
  const Storage next(4 * kMiB, kDevice);
  CHECK(next.data() == address);
  set(next, 2);
  CHECK(holds_only(next, 2));
  const StreamGuard use(reader);
  CHECK(holds_only(copy, 1));
}

TEST_CASE("a block may outlive its stream, and the streams that used it") {
  const DeviceGuard device(0);
  std::optional<Storage> block;
  {
    const Stream owner, user;
    const StreamGuard use(owner);
    block.emplace(kMiB, kDevice);
    set(*block, 3);
    record_use(block->data(), user.handle());
  }
  CHECK(holds_only(*block, 3));
  block.reset();
  empty_memory_cache(kDevice);
}

TEST_CASE("threads that allocate and free at once keep their blocks to themselves") {
  constexpr int kThreads = 3, kRounds = 40;
  const int64_t before = in_use();
  std::vector<int> spoilt(kThreads, 0);
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      const DeviceGuard device(0);
      std::optional<Stream> stream;
      std::optional<StreamGuard> use;
      if (i > 0) use.emplace(stream.emplace());
      for (int round = 0; round < kRounds; ++round) {
        const Storage first(64 << (round + i) % 12, kDevice), second(100 + 4096 * round, kDevice);
        set(first, 2 * i);
        set(second, 2 * i + 1);
        if (!holds_only(first, static_cast<uint8_t>(2 * i))) ++spoilt[static_cast<size_t>(i)];
        if (!holds_only(second, static_cast<uint8_t>(2 * i + 1))) ++spoilt[static_cast<size_t>(i)];
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(spoilt == std::vector<int>(kThreads, 0));
  CHECK(in_use() == before);
}

TEST_CASE("each device has counts of its own") {
  if (device_count() < 2) return;
  const Device other{DeviceType::cuda, 1};
  const int64_t before = in_use(), other_before = memory_stats(other).total.now;
  const Storage storage(kMiB, other);
  CHECK(in_use() == before);
  CHECK(memory_stats(other).total.now == other_before + kMiB);
}

}  // namespace
}  // namespace elwise::cuda
