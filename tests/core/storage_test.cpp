#include "core/storage.h"

#include <cstdlib>
#include <cstring>
#include <optional>

#include "core/tensor.h"
#include "tests/support/op_test.h"

namespace elwise {
namespace {

using testing::check_error;

constexpr int64_t kKiB = 1024, kMiB = 1024 * kKiB, kTiB = kMiB * kMiB;

/// Sets a device's memory limit until the end of the scope.
class LimitGuard {
 public:
  LimitGuard(Device device, int64_t bytes) : device_(device), previous_(memory_limit(device)) {
    set_memory_limit(device, bytes);
  }
  ~LimitGuard() { set_memory_limit(device_, previous_); }
  LimitGuard(const LimitGuard&) = delete;
  LimitGuard& operator=(const LimitGuard&) = delete;

 private:
  Device device_;
  int64_t previous_;
};

int64_t in_use(Device device) {
  return memory_stats(device).total.now;
}

TEST_CASE("requests are rounded to 64 bytes, at least 64") {
  CHECK(rounded_allocation(0) == 64);
  CHECK(rounded_allocation(1) == 64);
  CHECK(rounded_allocation(64) == 64);
  CHECK(rounded_allocation(65) == 128);
  CHECK(rounded_allocation(kMiB) == kMiB);
}

TEST_CASE("buffers are counted to the byte under the tag they are made with") {
  for (const Device device : {kCpu, kMeta}) {
    const MemoryStats before = memory_stats(device);
    {
      const Storage first(1000, device);
      CHECK(first.bytes() == 1024);
      CHECK(first.tag() == MemoryTag::activations);
      const MemoryTagGuard outer(MemoryTag::parameters);
      const Storage second(1, device);
      {
        const MemoryTagGuard inner(MemoryTag::optimizer);
        const Storage third(130, device);
        const MemoryStats during = memory_stats(device);
        CHECK(during.total.now == before.total.now + 1024 + 64 + 192);
        CHECK(during[MemoryTag::activations].now == before[MemoryTag::activations].now + 1024);
        CHECK(during[MemoryTag::parameters].now == before[MemoryTag::parameters].now + 64);
        CHECK(during[MemoryTag::optimizer].now == before[MemoryTag::optimizer].now + 192);
        CHECK(during[MemoryTag::gradients].now == before[MemoryTag::gradients].now);
      }
      CHECK(in_use(device) == before.total.now + 1024 + 64);
      CHECK(Storage(1, device).tag() == MemoryTag::parameters);
    }
    const MemoryStats after = memory_stats(device);
    CHECK(after.total.now == before.total.now);
    for (int tag = 0; tag < kMemoryTags; ++tag) {
      CHECK(after[static_cast<MemoryTag>(tag)].now == before[static_cast<MemoryTag>(tag)].now);
    }
  }
}

TEST_CASE("the peak is the largest sum since it was reset") {
  const MemoryTagGuard tag(MemoryTag::optimizer);
  for (const Device device : {kCpu, kMeta}) {
    reset_memory_peak(device);
    const int64_t before = in_use(device);
    CHECK(memory_stats(device).total.peak == before);
    { const Storage first(kMiB, device), second(kKiB, device); }
    { const Storage third(2 * kKiB, device); }
    const Storage kept(kKiB, device);
    CHECK(memory_stats(device).total.peak == before + kMiB + kKiB);
    CHECK(memory_stats(device)[MemoryTag::optimizer].peak >= kMiB + kKiB);
    CHECK(memory_stats(device)[MemoryTag::optimizer].now == kKiB);
    reset_memory_peak(device);
    CHECK(memory_stats(device).total.peak == before + kKiB);
    CHECK(memory_stats(device)[MemoryTag::optimizer].peak == kKiB);
  }
}

TEST_CASE("a buffer with another tag is counted under that one until it goes") {
  const MemoryStats before = memory_stats(kCpu);
  {
    Storage storage(kKiB, kCpu);
    storage.set_tag(MemoryTag::gradients);
    CHECK(storage.tag() == MemoryTag::gradients);
    const MemoryStats during = memory_stats(kCpu);
    CHECK(during[MemoryTag::activations].now == before[MemoryTag::activations].now);
    CHECK(during[MemoryTag::gradients].now == before[MemoryTag::gradients].now + kKiB);
    CHECK(during[MemoryTag::gradients].peak >= kKiB);
    CHECK(during.total.now == before.total.now + kKiB);
  }
  CHECK(memory_stats(kCpu)[MemoryTag::gradients].now == before[MemoryTag::gradients].now);
  CHECK(name_of(MemoryTag::activations) == "activations");
  CHECK(name_of(MemoryTag::parameters) == "parameters");
  CHECK(name_of(MemoryTag::gradients) == "gradients");
  CHECK(name_of(MemoryTag::optimizer) == "optimizer");
}

/// What the allocator has taken from the system.
int64_t held() {
  const MemoryStats stats = memory_stats(kCpu);
  return stats.total.now + stats.cached;
}

TEST_CASE("a freed block is cached and handed out again, until the cache is emptied") {
  empty_memory_cache(kCpu);
  const int64_t before = in_use(kCpu), held_before = held();
  const void* address = nullptr;
  int64_t held_with = 0;
  {
    const Storage storage(100 * kMiB, kCpu);
    address = storage.data();
    held_with = held();
    CHECK(held_with >= held_before + 100 * kMiB);
  }
  CHECK(held() == held_with);
  CHECK(memory_stats(kCpu).cached >= 100 * kMiB);
  CHECK(in_use(kCpu) == before);
  {
    const Storage again(100 * kMiB, kCpu);
    CHECK(again.data() == address);
    CHECK(held() == held_with);
    CHECK(in_use(kCpu) == before + 100 * kMiB);
  }
  empty_memory_cache(kCpu);
  CHECK(held() == held_before);
}

TEST_CASE("a step that repeats takes nothing new from the system") {
  const auto step = [] { const Storage a(kMiB, kCpu), b(100, kCpu), c(3 * kMiB, kCpu); };
  step();
  const int64_t first = held();
  for (int i = 0; i < 3; ++i) step();
  CHECK(held() == first);
}

TEST_CASE("an optimizer's state, made after the first step, leaves the second one its memory") {
  empty_memory_cache(kCpu);
  const auto activations = [] { const Storage a(100 * kMiB, kCpu), b(90 * kMiB, kCpu); };
  activations();
  const MemoryTagGuard tag(MemoryTag::optimizer);
  Storage state(60 * kMiB, kCpu);
  const int64_t first = held();
  {
    const MemoryTagGuard no_state(MemoryTag::activations);
    activations();
  }
  CHECK(held() == first);
  state.set_tag(MemoryTag::parameters);  // it still goes back to where it came from
}

TEST_CASE("an allocation past the limit is refused with the numbers") {
  REQUIRE(in_use(kMeta) == 0);
  const LimitGuard limit(kMeta, 2 * kMiB);
  CHECK(memory_limit(kMeta) == 2 * kMiB);
  {
    const Storage first(kMiB, kMeta);
    const MemoryTagGuard tag(MemoryTag::gradients);
    const Storage second(100, kMeta);
    const MemoryStats before = memory_stats(kMeta);
    const std::string message =
        "out of memory on meta: 1.00 MiB more would pass the limit (limit 2.00 MiB); in use 1.00 MiB: "
        "activations 1.00 MiB, parameters 0 B, gradients 128 B, optimizer 0 B";
    CHECK_THROWS_WITH_AS(Storage(kMiB, kMeta), message.c_str(), OutOfMemoryError);
    check_error([] { empty({kMiB / 4}, {.device = kMeta}); }, message);
    const MemoryStats after = memory_stats(kMeta);
    CHECK(after.total.now == before.total.now);
    CHECK(after.total.peak == before.total.peak);
    CHECK(after[MemoryTag::gradients].now == 128);
    const Storage last(kMiB - 128, kMeta);  // fills it to the byte
    CHECK(in_use(kMeta) == 2 * kMiB);
  }
  CHECK(in_use(kMeta) == 0);
}

TEST_CASE("the cache makes room before the CPU's limit refuses, and nothing leaks") {
  empty_memory_cache(kCpu);
  const int64_t before = in_use(kCpu), held_before = held();
  const LimitGuard limit(kCpu, before + 160 * kMiB);
  { const Storage cached(80 * kMiB, kCpu); }
  {
    const Storage larger(100 * kMiB, kCpu);  // beside what is cached it would pass the limit
    CHECK(held() <= held_before + 160 * kMiB);
  }
  {
    const Storage larger(140 * kMiB, kCpu);  // only without the cache is there room
    CHECK(held() <= held_before + 160 * kMiB);
    CHECK_THROWS_AS(Storage(30 * kMiB, kCpu), OutOfMemoryError);
    CHECK(in_use(kCpu) == before + 140 * kMiB);
    const Storage other(20 * kMiB, kCpu);
    CHECK_THROWS_AS(Storage(1, kCpu), OutOfMemoryError);
  }
  CHECK(in_use(kCpu) == before);
  empty_memory_cache(kCpu);
  CHECK(held() == held_before);
}

TEST_CASE("a limit that is set also holds for what is cached already") {
  { const Storage cached(100 * kMiB, kCpu); }
  const LimitGuard limit(kCpu, in_use(kCpu) + 512 * kKiB);
  CHECK(memory_stats(kCpu).cached < 100 * kMiB);
  CHECK_THROWS_AS(Storage(kMiB, kCpu), OutOfMemoryError);
}

TEST_CASE("the CPU's limit is what the machine had left at first, not all that it has; meta has none") {
  CHECK(memory_limit(kCpu) >= 64 * kMiB);
  CHECK(memory_limit(kCpu) <
        static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGE_SIZE) * 32 / 33);
  CHECK(memory_limit(kMeta) == 0);
  const LimitGuard none(kMeta, -1);
  CHECK(memory_limit(kMeta) == 0);
}

TEST_CASE("what the system refuses is an error too") {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return;  // the sanitizers' allocators end the program
#endif
  const int64_t before = in_use(kCpu);
  const LimitGuard none(kCpu, 0);
  CHECK_THROWS_WITH_AS(Storage(kTiB * 1024, kCpu),
                       doctest::Contains("out of memory on cpu: 1024.00 TiB more would pass what the system"),
                       OutOfMemoryError);
  CHECK(in_use(kCpu) == before);
}

TEST_CASE("meta counts what no machine has") {
  reset_memory_peak(kMeta);
  {
    const Tensor huge = empty({10, kTiB}, {.dtype = DType::boolean, .device = kMeta});
    CHECK(in_use(kMeta) == 10 * kTiB);
    CHECK(huge.data() != nullptr);
    CHECK(huge.alias({}, 10 * kTiB - 1).data() > huge.data());
  }
  CHECK(in_use(kMeta) == 0);
  CHECK(memory_stats(kMeta).total.peak == 10 * kTiB);
  CHECK(memory_stats(kMeta).cached == 0);
}

TEST_CASE("there is no memory on a device that was not built") {
  if (kBuiltWithCuda) return;
  const std::string message = "no memory on cuda:1: this library was built without CUDA";
  check_error([] { Storage(64, {DeviceType::cuda, 1}); }, message);
  check_error([] { empty({2}, {.device = {DeviceType::cuda, 1}}); }, message);
  check_error([] { memory_stats({DeviceType::cuda, 1}); }, message);
}

TEST_CASE("blocks are aligned, whole and apart") {
  for (const int64_t bytes : {int64_t{1}, int64_t{64}, 100 * kKiB, 2 * kMiB, 3 * kMiB + 1}) {
    const Storage a(bytes, kCpu), b(bytes, kCpu);
    CHECK(reinterpret_cast<uintptr_t>(a.data()) % 64 == 0);
    std::memset(a.data(), 1, static_cast<size_t>(a.bytes()));
    std::memset(b.data(), 2, static_cast<size_t>(b.bytes()));
    CHECK(static_cast<const char*>(a.data())[0] == 1);
    CHECK(static_cast<const char*>(a.data())[a.bytes() - 1] == 1);
  }
}

TEST_CASE("fresh buffers and buffers from the cache are poisoned on request") {
  const char* variable = std::getenv("ELWISE_POISON");
  if (variable == nullptr || std::string_view(variable) != "1") return;
  for (int round = 0; round < 2; ++round) {
    const Tensor x = empty({33}), y = empty({33}, {.dtype = DType::f64});
    const Tensor z = empty({33}, {.dtype = DType::bf16});
    for (int64_t i = 0; i < 33; ++i) {
      CHECK(std::isnan(x.data<float>()[i]));
      CHECK(std::isnan(y.data<double>()[i]));
      CHECK(std::isnan(static_cast<float>(z.data<BFloat16>()[i])));
      x.data<float>()[i] = 0;
      y.data<double>()[i] = 0;
      z.data<BFloat16>()[i] = BFloat16(0);
    }
  }
}

TEST_CASE("each change in place raises the version by one") {
  Storage storage(64, kMeta);
  CHECK(storage.version() == 0);
  storage.bump_version();
  storage.bump_version();
  CHECK(storage.version() == 2);
}

TEST_CASE("bytes are written with a unit") {
  CHECK(format_bytes(0) == "0 B");
  CHECK(format_bytes(640) == "640 B");
  CHECK(format_bytes(1023) == "1023 B");
  CHECK(format_bytes(1536) == "1.50 KiB");
  CHECK(format_bytes(80 * 1024 * kMiB) == "80.00 GiB");
  CHECK(format_bytes(10 * kTiB) == "10.00 TiB");
  CHECK(format_bytes(4096 * kTiB) == "4096.00 TiB");
}

}  // namespace
}  // namespace elwise
