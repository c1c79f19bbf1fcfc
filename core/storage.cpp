#include "core/storage.h"

#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iomanip>
#include <sstream>
#include <string>

#include "core/allocator.h"
#include "core/cuda_backend.h"

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

/// The memory that nobody uses now, or the control group's share, less a reserve for what is not counted
/// here: page tables, libraries' buffers, other programs that grow. Without it the system kills a process
/// before it would say that memory has run out.
int64_t available_memory() {
  int64_t bytes = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGE_SIZE);
  std::ifstream machine("/proc/meminfo");
  for (std::string line; std::getline(machine, line);) {
    constexpr std::string_view kLabel = "MemAvailable:";  // in KiB
    if (line.starts_with(kLabel))
      bytes = std::min<int64_t>(bytes, std::stoll(line.substr(kLabel.size())) * 1024);
  }
  std::ifstream group("/sys/fs/cgroup/memory.max");
  if (int64_t share = 0; group >> share) bytes = std::min(bytes, share);
  constexpr int64_t kReservedShare = 32;
  return bytes - bytes / kReservedShare;
}

/// Keeps freed blocks for reuse: a training step that repeats takes nothing new from the system.
class CpuAllocator : public CountingAllocator {
 public:
  CpuAllocator() : CountingAllocator(kCpu) { set_limit(available_memory()); }

  void poison(void* data, int64_t bytes) override { std::memset(data, 0xFF, static_cast<size_t>(bytes)); }

 protected:
  void* obtain(int64_t bytes, MemoryTag tag) override {
    return obtain_from(pools_.for_new(bytes, tag), bytes);
  }
  void give_back(void* block, int64_t bytes) override { pools_.give_back(block, bytes); }
  void drop_cache() override { pools_.release(); }
  int64_t held() const override { return pools_.held(); }

 private:
  BlockPools pools_;
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
      if constexpr (kBuiltWithCuda) return cuda::allocator(device.index);
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
  if (poison_requested()) allocator(device_).poison(data_, std::min(bytes_, kMostPoison));
}

Storage::~Storage() {
  allocator(device_).release(data_, bytes_, tag_);
}

void Storage::set_tag(MemoryTag tag) {
  allocator(device_).retag(bytes_, tag_, tag);
  tag_ = tag;
}

void copy_memory(void* to, Device to_device, const void* from, Device from_device, int64_t bytes) {
  if (bytes == 0 || to_device == kMeta || from_device == kMeta) return;
  if (to_device.type == DeviceType::cpu && from_device.type == DeviceType::cpu) {
    std::memmove(to, from, static_cast<size_t>(bytes));
  } else if constexpr (kBuiltWithCuda) {
    cuda::copy(to, to_device, from, from_device, bytes);
  }
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
