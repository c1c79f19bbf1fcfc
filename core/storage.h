#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "core/device.h"

namespace elwise {

/// What a buffer is for. Buffers are counted under the tag in force when they are made (MemoryTagGuard).
enum class MemoryTag : uint8_t { activations, parameters, gradients, optimizer };
inline constexpr int kMemoryTags = 4;

std::string_view name_of(MemoryTag tag);

struct MemoryCount {
  int64_t now = 0;   // bytes
  int64_t peak = 0;  // the largest `now` since reset_memory_peak
};

/// Exact counts of one device's allocator, in bytes after rounding (rounded_allocation).
struct MemoryStats {
  MemoryCount total;
  std::array<MemoryCount, kMemoryTags> by_tag;
  int64_t cached = 0;  // taken from the system and in no buffer: kept for reuse

  const MemoryCount& operator[](MemoryTag tag) const { return by_tag[static_cast<size_t>(tag)]; }
};

MemoryStats memory_stats(Device device);

/// Sets every peak to what is allocated now.
void reset_memory_peak(Device device);

/// The most bytes that the device's buffers may take; an allocation that would pass it throws
/// OutOfMemoryError with the counts. Cached memory is given back to the system to stay below it, where no
/// buffer lies in the same segment. Default: for cpu 31/32 of the memory that was available when the
/// first tensor was made, none for cuda and meta. `bytes` <= 0 takes the limit away.
void set_memory_limit(Device device, int64_t bytes);
int64_t memory_limit(Device device);

/// Gives cached segments without a buffer back to the system.
void empty_memory_cache(Device device);

/// Bytes that a request counts for: the one rounding rule of all allocators (the next multiple of 64, at
/// least 64).
constexpr int64_t rounded_allocation(int64_t bytes) {
  return bytes <= 64 ? 64 : (bytes + 63) / 64 * 64;
}

/// Tags the allocations of the calling thread until the end of the scope.
class MemoryTagGuard {
 public:
  explicit MemoryTagGuard(MemoryTag tag);
  ~MemoryTagGuard();
  MemoryTagGuard(const MemoryTagGuard&) = delete;
  MemoryTagGuard& operator=(const MemoryTagGuard&) = delete;

 private:
  MemoryTag previous_;
};

/// A reference-counted buffer on one device, aligned to 64 bytes. Contents are unspecified at first; with
/// ELWISE_POISON=1 in the environment they are NaN (the first 256 KiB of a larger buffer).
class Storage {
 public:
  /// Throws OutOfMemoryError (see set_memory_limit).
  Storage(int64_t bytes, Device device);
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  /// On meta: an address that is never mapped, but not null.
  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  Device device() const { return device_; }

  MemoryTag tag() const { return tag_; }
  /// Counts the buffer under another tag from now on.
  void set_tag(MemoryTag tag);

  /// How often the contents were changed in place. Autograd compares it with the count when it saved a
  /// tensor.
  int64_t version() const { return version_; }
  void bump_version() { ++version_; }

 private:
  void* data_;
  int64_t bytes_;
  Device device_;
  MemoryTag tag_;
  std::atomic<int64_t> version_ = 0;
};

/// Copies between any two devices; nothing where one is meta. Returns once `from` may be changed and, where
/// `to_device` is the CPU, once `to` holds the bytes.
void copy_memory(void* to, Device to_device, const void* from, Device from_device, int64_t bytes);

/// "1.50 GiB", "640 B".
std::string format_bytes(int64_t bytes);

}  // namespace elwise
