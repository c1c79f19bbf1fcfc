#pragma once

#include <algorithm>
#include <mutex>

#include "core/block_pool.h"
#include "core/storage.h"

namespace elwise {

/// Counts what is allocated, by tag, and refuses what would pass the limit. The base of all allocators; on
/// its own it is meta's.
class CountingAllocator {
 public:
  explicit CountingAllocator(Device device) : device_(device) {}
  virtual ~CountingAllocator() = default;

  /// `bytes` as rounded_allocation gives them. Throws OutOfMemoryError.
  void* allocate(int64_t bytes, MemoryTag tag);
  void release(void* data, int64_t bytes, MemoryTag tag);
  void retag(int64_t bytes, MemoryTag from, MemoryTag to);

  MemoryStats stats();
  void reset_peak();
  void set_limit(int64_t bytes);
  int64_t limit();
  void empty_cache();

  /// Fills the beginning of a fresh buffer with NaN (ELWISE_POISON).
  virtual void poison(void*, int64_t) {}

 protected:
  virtual void* obtain(int64_t bytes, MemoryTag tag);
  virtual void give_back(void*, int64_t) {}
  virtual void drop_cache() {}
  /// Bytes that were taken from the system.
  virtual int64_t held() const { return 0; }

  /// True where `more` bytes from the system would pass the limit.
  bool cache_passes_limit(int64_t more) const { return limit_ > 0 && held() + more > limit_; }
  void check_limit(int64_t more) const;

  /// The steps from a pool's cached block to a new segment: the cache is dropped where the limit or the
  /// system asks for it.
  void* obtain_from(BlockPool& pool, int64_t bytes);

 private:
  [[noreturn]] void throw_out_of_memory(int64_t bytes, const char* what) const;
  void count_tag(MemoryTag tag, int64_t bytes);
  void count(MemoryTag tag, int64_t bytes);

  Device device_;
  MemoryStats stats_;
  int64_t limit_ = 0;
  std::mutex mutex_;
};

/// A pool for small blocks beside one for large ones, so that small tensors that live long do not break up
/// large segments, and one for an optimizer's state: it comes when the first step's activations are gone, and
/// in their place it would send those of the second step to the system once more.
class BlockPools {
 public:
  explicit BlockPools(SegmentSource source = system_memory())
      : small_(2 * kSmall, source), large_(64 * kSmall, source), state_(64 * kSmall, source) {}

  BlockPool& for_new(int64_t bytes, MemoryTag tag) {
    return bytes < kSmall ? small_ : tag == MemoryTag::optimizer ? state_ : large_;
  }
  /// The tag may have changed since.
  void give_back(void* block, int64_t bytes) {
    (bytes < kSmall ? small_ : state_.holds(block) ? state_ : large_).give_back(block);
  }
  void release() {
    small_.release();
    large_.release();
    state_.release();
  }
  int64_t held() const { return small_.held() + large_.held() + state_.held(); }

 private:
  static constexpr int64_t kSmall = int64_t{1} << 20;
  BlockPool small_, large_, state_;
};

}  // namespace elwise
