#include "tests/support/cuda/traffic/access_counter.h"

#include <cstddef>
#include <unordered_set>
#include <utility>

#include "tests/support/cuda/device_memory.h"

namespace emulation {
namespace {

/// One direction of the accesses.
class Accesses {
 public:
  void add(const void* address, size_t bytes) {
    if (DeviceMemory::owner(address) < 0) return;
    bytes_ += static_cast<int64_t>(bytes);
    const auto first = reinterpret_cast<uintptr_t>(address);
    for (uintptr_t sector = first / kSectorBytes; sector * kSectorBytes < first + bytes; ++sector) {
      if (sector != last_) sectors_.insert(last_ = sector);
    }
  }

  int64_t bytes() const { return bytes_; }
  int64_t sector_bytes() const { return static_cast<int64_t>(sectors_.size()) * kSectorBytes; }

 private:
  int64_t bytes_ = 0;
  uintptr_t last_ = 0;
  std::unordered_set<uintptr_t> sectors_;
};

struct Counter {
  Accesses reads, writes;
};

Counter& counter() {
  static Counter instance;
  return instance;
}

void count_read(const volatile void* address, size_t bytes) {
  counter().reads.add(const_cast<const void*>(address), bytes);
}
void count_write(const volatile void* address, size_t bytes) {
  counter().writes.add(const_cast<const void*>(address), bytes);
}

/// A change, or an attempt at one.
template <class T>
void count_atomic(volatile T* address) {
  count_read(address, sizeof(T));
  count_write(address, sizeof(T));
}

}  // namespace

Traffic& Traffic::operator+=(const Traffic& other) {
  read += other.read;
  written += other.written;
  sectors_read += other.sectors_read;
  sectors_written += other.sectors_written;
  return *this;
}

Traffic take_traffic() {
  const Counter done = std::exchange(counter(), {});
  return {done.reads.bytes(), done.writes.bytes(), done.reads.sector_bytes(), done.writes.sector_bytes()};
}

}  // namespace emulation

// The interface of instrumented code to ThreadSanitizer, as far as g++ 12 uses it for our kernels.
extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}

#define ELWISE_COUNTED_ACCESS(bytes)        \
  void __tsan_read##bytes(void* address) {  \
    emulation::count_read(address, bytes);  \
  }                                         \
  void __tsan_write##bytes(void* address) { \
    emulation::count_write(address, bytes); \
  }
ELWISE_COUNTED_ACCESS(1)
ELWISE_COUNTED_ACCESS(2)
ELWISE_COUNTED_ACCESS(4)
ELWISE_COUNTED_ACCESS(8)
ELWISE_COUNTED_ACCESS(16)

void __tsan_read_range(void* address, unsigned long bytes) {
  emulation::count_read(address, bytes);
}
void __tsan_write_range(void* address, unsigned long bytes) {
  emulation::count_write(address, bytes);
}

#define ELWISE_COUNTED_ATOMICS(bits, T)                                                                     \
  T __tsan_atomic##bits##_load(const volatile T* address, int) {                                            \
    emulation::count_read(address, sizeof(T));                                                              \
    return __atomic_load_n(address, __ATOMIC_RELAXED);                                                      \
  }                                                                                                         \
  T __tsan_atomic##bits##_fetch_add(volatile T* address, T value, int) {                                    \
    emulation::count_atomic(address);                                                                       \
    return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);                                            \
  }                                                                                                         \
  int __tsan_atomic##bits##_compare_exchange_weak(volatile T* address, T* expected, T value, int, int) {    \
    emulation::count_atomic(address);                                                                       \
    return __atomic_compare_exchange_n(address, expected, value, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED); \
  }
ELWISE_COUNTED_ATOMICS(32, int)
ELWISE_COUNTED_ATOMICS(64, long)
/// Of the guards of static variables: the host's.
char __tsan_atomic8_load(const volatile char* address, int) {
  return __atomic_load_n(address, __ATOMIC_ACQUIRE);
}

}  // extern "C"
