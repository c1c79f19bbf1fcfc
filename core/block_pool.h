#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <set>
#include <utility>

namespace elwise {

/// Where a pool's segments come from.
struct SegmentSource {
  char* (*allocate)(int64_t bytes);  // null: there is no more
  void (*release)(char* segment);
};

/// The system's memory, in huge pages where a segment is large.
SegmentSource system_memory();

/// Memory in large segments, cut into blocks as they are asked for. A freed block becomes one with its free
/// neighbours, so that what held many small tensors can hold a large one next. Not thread-safe.
class BlockPool {
 public:
  /// AddressSanitizer sees where a segment ends, not a block: under it every block is a segment of its own.
#if defined(__SANITIZE_ADDRESS__)
  static constexpr bool kCutsBlocks = false;
#else
  static constexpr bool kCutsBlocks = true;
#endif

  /// Segments have `segment_bytes`, or more for a larger block.
  explicit BlockPool(int64_t segment_bytes, SegmentSource source = system_memory())
      : segment_bytes_(segment_bytes), source_(source) {}
  /// Gives free segments back; blocks that are still in use stay valid.
  ~BlockPool() {
    release();
  }
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;

  /// The smallest free block that holds `bytes` (a multiple of 64), cut to size; aligned to 64. Null if there
  /// is none.
  void* take(int64_t bytes);
  /// The size of the segment that a block of `bytes` is cut from.
  int64_t segment_for(int64_t bytes) const {
    return kCutsBlocks ? std::max(bytes, segment_bytes_) : bytes;
  }
  /// Gets a segment from the source, of segment_for(bytes) or, if `exact`, of `bytes`, and takes a block from
  /// it. Null if the source has no more.
  void* grow(int64_t bytes, bool exact);
  void give_back(void* block);
  /// True for a block that was taken from here.
  bool holds(void* block) const {
    return blocks_.contains(static_cast<char*>(block));
  }
  /// Gives segments without a block in use back to the source.
  void release();

  /// Bytes of the source's, in blocks or free.
  int64_t held() const {
    return held_;
  }

 private:
  struct Block {
    int64_t bytes;
    int64_t segment;  // the size of the segment that starts here; 0 inside a segment
    bool free;
  };
  using Blocks = std::map<char*, Block>;

  void* use(Blocks::iterator block, int64_t bytes);

  int64_t segment_bytes_;
  SegmentSource source_;
  int64_t held_ = 0;
  Blocks blocks_;                             // all, by address
  std::set<std::pair<int64_t, char*>> free_;  // by size
};

}  // namespace elwise
