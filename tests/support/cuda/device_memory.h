#pragma once

#include <cstddef>
#include <cstdint>
#include <map>

namespace emulation {

inline constexpr int kDevices = 2;

/// The memory of one emulated GPU: an address range that the host cannot touch but while work of the device
/// runs (DeviceAccess). Fresh memory holds NaN; AddressSanitizer sees every byte outside an allocation.
class DeviceMemory {
 public:
  static constexpr size_t kCapacity = size_t{8} << 30;

  static DeviceMemory& of(int device);
  /// The device whose memory `pointer` lies in, or -1.
  static int owner(const void* pointer);

  /// Null where there is no room.
  void* allocate(size_t bytes);
  /// False for what is not an allocation.
  bool free(void* pointer);
  size_t in_use() const { return in_use_; }
  int64_t allocations() const { return static_cast<int64_t>(blocks_.size()); }

 private:
  friend class DeviceAccess;
  DeviceMemory();
  void protect(int flags) const;

  char* base_;
  size_t end_ = 0;    // of the part that was ever used
  int accesses_ = 0;  // nested DeviceAccess
  size_t in_use_ = 0;
  std::map<char*, size_t> blocks_;     // sizes
  std::multimap<size_t, char*> gaps_;  // freed, by size
};

/// Opens a device's memory while it lives.
class DeviceAccess {
 public:
  explicit DeviceAccess(int device);
  ~DeviceAccess();
  DeviceAccess(const DeviceAccess&) = delete;
  DeviceAccess& operator=(const DeviceAccess&) = delete;

 private:
  DeviceMemory& memory_;
};

}  // namespace emulation
