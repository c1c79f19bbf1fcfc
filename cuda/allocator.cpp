#include "core/allocator.h"

#include <array>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <unordered_map>

#include "core/cuda_backend.h"
#include "cuda/runtime.h"

namespace elwise::cuda {
namespace {

char* device_segment(int64_t bytes) {
  void* data = nullptr;
  const cudaError_t status = cudaMalloc(&data, static_cast<size_t>(bytes));
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return nullptr;
  }
  check(status, "cudaMalloc");
  return static_cast<char*>(data);
}

constexpr SegmentSource kDeviceMemory = {.allocate = device_segment,
                                         .release = [](char* segment) { cudaFree(segment); }};

/// Freed blocks are reused in the order of their stream's work, so that nothing waits: each stream has its
/// own pools, and a block goes back to those that it came from.
class CudaAllocator : public CountingAllocator {
 public:
  explicit CudaAllocator(int device) : CountingAllocator({DeviceType::cuda, device}), index_(device) {}

  void poison(void* data, int64_t bytes) override {
    const DeviceGuard guard(index_);
    ELWISE_CUDA_CHECK(cudaMemsetAsync(data, 0xFF, static_cast<size_t>(bytes), current_stream()));
  }

  void record_use(const void* block, cudaStream_t stream) {
    const std::lock_guard lock(uses_mutex_);
    other_uses_[block].insert(stream);
  }

 protected:
  void* obtain(int64_t bytes, MemoryTag tag) override {
    const DeviceGuard guard(index_);
    const cudaStream_t stream = current_stream();
    const auto pools = pools_.try_emplace(stream, kDeviceMemory).first;
    void* block = obtain_from(pools->second.for_new(bytes, tag), bytes);
    owners_[block] = stream;
    return block;
  }

  void give_back(void* block, int64_t bytes) override {
    const auto owner = owners_.find(block);
    const cudaStream_t stream = owner->second;
    owners_.erase(owner);
    wait_for_other_uses(block, stream);
    pools_.at(stream).give_back(block, bytes);
  }

  void drop_cache() override {
    const DeviceGuard guard(index_);
    for (auto& [stream, pools] : pools_) pools.release();
    release_workspaces();
  }

  int64_t held() const override {
    int64_t total = 0;
    for (const auto& [stream, pools] : pools_) total += pools.held();
    return total;
  }

 private:
  void wait_for_other_uses(const void* block, cudaStream_t owner) {
    const std::lock_guard lock(uses_mutex_);
    const auto uses = other_uses_.find(block);
    if (uses == other_uses_.end()) return;
    const DeviceGuard guard(index_);
    for (const cudaStream_t stream : uses->second) {
      if (stream == owner) continue;
      Event event;
      event.record(stream);
      event.block(owner);
    }
    other_uses_.erase(uses);
  }

  int index_;
  std::map<cudaStream_t, BlockPools> pools_;
  std::unordered_map<const void*, cudaStream_t> owners_;
  std::unordered_map<const void*, std::set<cudaStream_t>> other_uses_;
  std::mutex uses_mutex_;
};

CudaAllocator& cuda_allocator(int device) {
  check_available({DeviceType::cuda, device});
  // Never destroyed: tensors in static objects may outlive any order of destruction.
  static auto& allocators = *new std::map<int, CudaAllocator>;
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  return allocators.try_emplace(device, device).first->second;
}

}  // namespace

CountingAllocator& allocator(int device) {
  return cuda_allocator(device);
}

void record_use(const void* block, cudaStream_t stream) {
  cuda_allocator(current_device()).record_use(block, stream);
}

}  // namespace elwise::cuda
