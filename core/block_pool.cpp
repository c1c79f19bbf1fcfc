#include "core/block_pool.h"

#include <sys/mman.h>

#include <cstdlib>

namespace elwise {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;

char* system_allocate(int64_t bytes) {
  const bool huge = bytes >= kHugePage;
  const int64_t alignment = huge ? kHugePage : 64;
  const int64_t size = (bytes + alignment - 1) / alignment * alignment;
  void* data = std::aligned_alloc(static_cast<size_t>(alignment), static_cast<size_t>(size));
  if (data != nullptr && huge) madvise(data, static_cast<size_t>(size), MADV_HUGEPAGE);
  return static_cast<char*>(data);
}

}  // namespace

SegmentSource system_memory() {
  return {.allocate = system_allocate, .release = [](char* segment) { std::free(segment); }};
}

void* BlockPool::take(int64_t bytes) {
  const auto found = free_.lower_bound({bytes, nullptr});
  if (found == free_.end()) return nullptr;
  // A block that is not cut would waste what it is larger.
  if (!kCutsBlocks && found->first > bytes + bytes / 8) return nullptr;
  return use(blocks_.find(found->second), bytes);
}

void* BlockPool::grow(int64_t bytes, bool exact) {
  const int64_t segment = exact ? bytes : segment_for(bytes);
  char* data = source_.allocate(segment);
  if (data == nullptr) return nullptr;
  held_ += segment;
  const auto block = blocks_.emplace(data, Block{.bytes = segment, .segment = segment, .free = true}).first;
  free_.emplace(segment, data);
  return use(block, bytes);
}

void* BlockPool::use(Blocks::iterator block, int64_t bytes) {
  auto& [data, now] = *block;
  free_.erase({now.bytes, data});
  now.free = false;
  if (kCutsBlocks && now.bytes > bytes) {
    const Block rest{.bytes = now.bytes - bytes, .segment = 0, .free = true};
    free_.emplace(rest.bytes, data + bytes);
    blocks_.emplace_hint(std::next(block), data + bytes, rest);
    now.bytes = bytes;
  }
  return data;
}

void BlockPool::give_back(void* data) {
  auto block = blocks_.find(static_cast<char*>(data));
  if (const auto next = std::next(block);
      next != blocks_.end() && next->second.free && next->second.segment == 0) {
    free_.erase({next->second.bytes, next->first});
    block->second.bytes += next->second.bytes;
    blocks_.erase(next);
  }
  if (block->second.segment == 0) {
    if (const auto previous = std::prev(block); previous->second.free) {
      free_.erase({previous->second.bytes, previous->first});
      previous->second.bytes += block->second.bytes;
      blocks_.erase(block);
      block = previous;
    }
  }
  block->second.free = true;
  free_.emplace(block->second.bytes, block->first);
}

void BlockPool::release() {
  for (auto block = blocks_.begin(); block != blocks_.end();) {
    const auto& [data, state] = *block;
    if (!state.free || state.bytes != state.segment) {
      ++block;
      continue;
    }
    held_ -= state.bytes;
    free_.erase({state.bytes, data});
    source_.release(data);
    block = blocks_.erase(block);
  }
}

}  // namespace elwise
