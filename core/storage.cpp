#include "core/storage.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iomanip>
#include <mutex>
#include <sstream>

#include "core/block_pool.h"

namespace elwise {
namespace {

// Of a large buffer only the beginning is poisoned: every matrix product gets a workspace of megabytes.
constexpr int64_t kMostPoison = int64_t{1} << 18;

thread_local MemoryTag current_tag = MemoryTag::activations;

bool poison_requested() {
  static const bool requested = [] {
    const char* variable = std::getenv("ELWISE_POISON");
    return variable != nullptr && std::string_view(variable) == "1";
  }();
  return requested;
}

/// The machine's memory, or the control group's share of it.
int64_t machine_memory() {
  int64_t bytes = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGE_SIZE);
  std::ifstream group("/sys/fs/cgroup/memory.max");
  if (int64_t share = 0; group >> share) bytes = std::min(bytes, share);
  return bytes;
}

/// Counts what is allocated, by tag, and refuses what would pass the limit. The base of all allocators; on
/// its own it is meta's.
class CountingAllocator {
 public:
  explicit CountingAllocator(Device device) : device_(device) {}
  virtual ~CountingAllocator() = default;

  void* allocate(int64_t bytes, MemoryTag tag) {
    const std::lock_guard lock(mutex_);
    void* data = obtain(bytes);
    count(tag, bytes);
    return data;
  }

  void release(void* data, int64_t bytes, MemoryTag tag) {
    const std::lock_guard lock(mutex_);
    give_back(data, bytes);
    count(tag, -bytes);
  }

  void retag(int64_t bytes, MemoryTag from, MemoryTag to) {
    const std::lock_guard lock(mutex_);
    count_tag(from, -bytes);
    count_tag(to, bytes);
  }

  MemoryStats stats() {
    const std::lock_guard lock(mutex_);
    MemoryStats stats = stats_;
    stats.cached = std::max<int64_t>(held() - stats.total.now, 0);
    return stats;
  }

  void reset_peak() {
    const std::lock_guard lock(mutex_);
    stats_.total.peak = stats_.total.now;
    for (MemoryCount& tag : stats_.by_tag) tag.peak = tag.now;
  }

  void set_limit(int64_t bytes) {
    const std::lock_guard lock(mutex_);
    limit_ = std::max<int64_t>(bytes, 0);
    if (cache_passes_limit(0)) drop_cache();
  }

  int64_t limit() {
    const std::lock_guard lock(mutex_);
    return limit_;
  }

  void empty_cache() {
    const std::lock_guard lock(mutex_);
    drop_cache();
  }

 protected:
  virtual void* obtain(int64_t bytes) {
    check_limit(bytes);
    // A non-canonical address: not null, and a fault for whoever follows it.
    return reinterpret_cast<void*>(uintptr_t{0x00F0'0000'0000'0000});
  }
  virtual void give_back(void*, int64_t) {}
  virtual void drop_cache() {}
  /// Bytes that were taken from the system.
  virtual int64_t held() const { return 0; }

  /// True where `more` bytes from the system would pass the limit.
  bool cache_passes_limit(int64_t more) const { return limit_ > 0 && held() + more > limit_; }
  void check_limit(int64_t more) const {
    if (limit_ > 0 && stats_.total.now + more > limit_) throw_out_of_memory(more, "the limit");
  }

  [[noreturn]] void throw_out_of_memory(int64_t bytes, const char* what) const {
    std::ostringstream text;
    text << "out of memory on " << device_ << ": " << format_bytes(bytes) << " more would pass " << what;
    if (limit_ > 0) text << " (limit " << format_bytes(limit_) << ")";
    text << "; in use " << format_bytes(stats_.total.now);
    for (int i = 0; i < kMemoryTags; ++i) {
      const auto tag = static_cast<MemoryTag>(i);
      text << (i == 0 ? ": " : ", ") << name_of(tag) << ' ' << format_bytes(stats_[tag].now);
    }
    throw OutOfMemoryError(text.str());
  }

  MemoryStats stats_;

 private:
  static void add(MemoryCount& count, int64_t bytes) {
    count.now += bytes;
    count.peak = std::max(count.peak, count.now);
  }
  void count_tag(MemoryTag tag, int64_t bytes) { add(stats_.by_tag[static_cast<size_t>(tag)], bytes); }
  void count(MemoryTag tag, int64_t bytes) {
    add(stats_.total, bytes);
    count_tag(tag, bytes);
  }

  Device device_;
  int64_t limit_ = 0;
  std::mutex mutex_;
};

/// Keeps freed blocks for reuse: a training step that repeats takes nothing new from the system.
class CpuAllocator : public CountingAllocator {
 public:
  CpuAllocator() : CountingAllocator(kCpu) { set_limit(machine_memory()); }

 protected:
  void* obtain(int64_t bytes) override {
    check_limit(bytes);
    BlockPool& pool = pool_for(bytes);
    if (void* block = pool.take(bytes)) return block;
    const int64_t segment = pool.segment_for(bytes);
    if (cache_passes_limit(segment)) drop_cache();
    void* block = pool.grow(bytes, /*exact=*/cache_passes_limit(segment));
    if (block == nullptr) {
      drop_cache();
      block = pool.grow(bytes, /*exact=*/true);
    }
    if (block == nullptr) throw_out_of_memory(bytes, "what the system gives");
    return block;
  }

  void give_back(void* block, int64_t bytes) override { pool_for(bytes).give_back(block); }

  void drop_cache() override {
    small_.release();
    large_.release();
  }

  int64_t held() const override { return small_.held() + large_.held(); }

 private:
  static constexpr int64_t kSmall = int64_t{1} << 20;

  BlockPool& pool_for(int64_t bytes) { return bytes < kSmall ? small_ : large_; }

  BlockPool small_{2 * kSmall};  // apart, so that small tensors that live long do not break up large segments
  BlockPool large_{64 * kSmall};
};

CountingAllocator& allocator(Device device) {
  // Never destroyed: tensors in static objects may outlive any order of destruction.
  static auto& cpu = *new CpuAllocator;
  static auto& meta = *new CountingAllocator(kMeta);
  switch (device.type) {
    case DeviceType::cpu:
      return cpu;
    case DeviceType::meta:
      return meta;
    case DeviceType::cuda:
      break;
  }
  fail("no memory on ", device, ": this library was built without CUDA");
}

}  // namespace

std::string_view name_of(MemoryTag tag) {
  switch (tag) {
    case MemoryTag::activations:
      return "activations";
    case MemoryTag::parameters:
      return "parameters";
    case MemoryTag::gradients:
      return "gradients";
    case MemoryTag::optimizer:
      return "optimizer";
  }
  return "?";
}

MemoryStats memory_stats(Device device) {
  return allocator(device).stats();
}
void reset_memory_peak(Device device) {
  allocator(device).reset_peak();
}
void set_memory_limit(Device device, int64_t bytes) {
  allocator(device).set_limit(bytes);
}
int64_t memory_limit(Device device) {
  return allocator(device).limit();
}
void empty_memory_cache(Device device) {
  allocator(device).empty_cache();
}

MemoryTagGuard::MemoryTagGuard(MemoryTag tag) : previous_(current_tag) {
  current_tag = tag;
}
MemoryTagGuard::~MemoryTagGuard() {
  current_tag = previous_;
}

Storage::Storage(int64_t bytes, Device device)
    : bytes_(rounded_allocation(bytes)), device_(device), tag_(current_tag) {
  data_ = allocator(device_).allocate(bytes_, tag_);
  if (device_.type == DeviceType::cpu && poison_requested()) {
    std::memset(data_, 0xFF, static_cast<size_t>(std::min(bytes_, kMostPoison)));
  }
}

Storage::~Storage() {
  allocator(device_).release(data_, bytes_, tag_);
}

void Storage::set_tag(MemoryTag tag) {
  allocator(device_).retag(bytes_, tag_, tag);
  tag_ = tag;
}

std::string format_bytes(int64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  std::ostringstream text;
  text << std::fixed << std::setprecision(unit == 0 ? 0 : 2) << value << ' ' << kUnits[unit];
  return text.str();
}

}  // namespace elwise
