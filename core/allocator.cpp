#include "core/allocator.h"

#include <sstream>

namespace elwise {

void* CountingAllocator::allocate(int64_t bytes, MemoryTag tag) {
  const std::lock_guard lock(mutex_);
  void* data = obtain(bytes, tag);
  count(tag, bytes);
  return data;
}

void CountingAllocator::release(void* data, int64_t bytes, MemoryTag tag) {
  const std::lock_guard lock(mutex_);
  give_back(data, bytes);
  count(tag, -bytes);
}

void CountingAllocator::retag(int64_t bytes, MemoryTag from, MemoryTag to) {
  const std::lock_guard lock(mutex_);
  count_tag(from, -bytes);
  count_tag(to, bytes);
}

MemoryStats CountingAllocator::stats() {
  const std::lock_guard lock(mutex_);
  MemoryStats stats = stats_;
  stats.cached = std::max<int64_t>(held() - stats.total.now, 0);
  return stats;
}

void CountingAllocator::reset_peak() {
  const std::lock_guard lock(mutex_);
  stats_.total.peak = stats_.total.now;
  for (MemoryCount& tag : stats_.by_tag) tag.peak = tag.now;
}

void CountingAllocator::set_limit(int64_t bytes) {
  const std::lock_guard lock(mutex_);
  limit_ = std::max<int64_t>(bytes, 0);
  if (cache_passes_limit(0)) drop_cache();
}

int64_t CountingAllocator::limit() {
  const std::lock_guard lock(mutex_);
  return limit_;
}

void CountingAllocator::empty_cache() {
  const std::lock_guard lock(mutex_);
  drop_cache();
}

void* CountingAllocator::obtain(int64_t bytes, MemoryTag) {
  check_limit(bytes);
  // A non-canonical address: not null, and a fault for whoever follows it.
  return reinterpret_cast<void*>(uintptr_t{0x00F0'0000'0000'0000});
}

void* CountingAllocator::obtain_from(BlockPool& pool, int64_t bytes) {
  check_limit(bytes);
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

void CountingAllocator::check_limit(int64_t more) const {
  if (limit_ > 0 && stats_.total.now + more > limit_) throw_out_of_memory(more, "the limit");
}

void CountingAllocator::throw_out_of_memory(int64_t bytes, const char* what) const {
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

void CountingAllocator::count_tag(MemoryTag tag, int64_t bytes) {
  MemoryCount& count = stats_.by_tag[static_cast<size_t>(tag)];
  count.now += bytes;
  count.peak = std::max(count.peak, count.now);
}

void CountingAllocator::count(MemoryTag tag, int64_t bytes) {
  stats_.total.now += bytes;
  stats_.total.peak = std::max(stats_.total.peak, stats_.total.now);
  count_tag(tag, bytes);
}

}  // namespace elwise
