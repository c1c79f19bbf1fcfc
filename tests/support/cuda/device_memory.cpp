#include "tests/support/cuda/device_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <new>

#include "tests/support/cuda/emulation.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) static_cast<void>(0)
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) static_cast<void>(0)
#endif

namespace emulation {
namespace {

constexpr size_t kAlignment = 256;  // as cudaMalloc's
constexpr size_t kHugePage = size_t{2} << 20;

size_t rounded(size_t bytes) {
  return (bytes + kAlignment) / kAlignment * kAlignment;  // with a gap behind, for AddressSanitizer
}

struct sigaction previous_action;

/// A host that follows a device pointer dies by a signal, as it would on a machine with a GPU; this says why.
void explain_fault(int, siginfo_t* info, void*) {
  if (DeviceMemory::owner(info->si_addr) >= 0) {
    constexpr char kMessage[] = "emulation: the host used device memory\n";
    [[maybe_unused]] const ssize_t written = write(STDERR_FILENO, kMessage, sizeof kMessage - 1);
  }
  sigaction(SIGSEGV, &previous_action, nullptr);  // the access is repeated, and ends as it would have ended
}

/// Again and again, because doctest installs a handler for every test case.
void install_explanation() {
  struct sigaction action {};
  sigaction(SIGSEGV, nullptr, &action);
  if ((action.sa_flags & SA_SIGINFO) != 0 && action.sa_sigaction == explain_fault) return;
  previous_action = action;
  action = {};
  action.sa_sigaction = explain_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;  // the fault may be a fiber's overflow
  sigaction(SIGSEGV, &action, nullptr);
}

}  // namespace

DeviceMemory::DeviceMemory() {
  void* range =
      mmap(nullptr, kCapacity + kHugePage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (range == MAP_FAILED) throw std::bad_alloc();
  const auto address = reinterpret_cast<uintptr_t>(range);
  base_ = reinterpret_cast<char*>((address + kHugePage - 1) / kHugePage * kHugePage);
  madvise(base_, kCapacity, MADV_HUGEPAGE);
}

DeviceMemory& DeviceMemory::of(int device) {
  static DeviceMemory memories[kDevices];
  return memories[device];
}

int DeviceMemory::owner(const void* pointer) {
  for (int device = 0; device < kDevices; ++device) {
    const char* base = of(device).base_;
    if (pointer >= base && pointer < base + kCapacity) return device;
  }
  return -1;
}

void* DeviceMemory::allocate(size_t bytes) {
  const size_t size = rounded(bytes);
  char* block;
  if (const auto gap = gaps_.lower_bound(size); gap != gaps_.end() && gap->first < 2 * size) {
    block = gap->second;
    blocks_.emplace(block, gap->first);
    gaps_.erase(gap);
  } else {
    if (end_ + size > kCapacity) return nullptr;
    block = base_ + end_;
    end_ += size;
    blocks_.emplace(block, size);
  }
  in_use_ += blocks_.at(block);
  const int device = owner(block);
  const DeviceAccess access(device);
  ASAN_UNPOISON_MEMORY_REGION(block, bytes);
  ASAN_POISON_MEMORY_REGION(block + bytes, blocks_.at(block) - bytes);
  std::memset(block, 0xFF, bytes);
  return block;
}

bool DeviceMemory::free(void* pointer) {
  const auto block = blocks_.find(static_cast<char*>(pointer));
  if (block == blocks_.end()) return false;
  in_use_ -= block->second;
  ASAN_POISON_MEMORY_REGION(block->first, block->second);
  gaps_.emplace(block->second, block->first);
  blocks_.erase(block);
  return true;
}

void DeviceMemory::protect(int flags) const {
  const size_t used = (end_ + kHugePage - 1) / kHugePage * kHugePage;
  if (used > 0 && mprotect(base_, used, flags) != 0) throw std::bad_alloc();
}

DeviceAccess::DeviceAccess(int device) : memory_(DeviceMemory::of(device)) {
  if (memory_.accesses_++ == 0) memory_.protect(PROT_READ | PROT_WRITE);
}
DeviceAccess::~DeviceAccess() {
  if (--memory_.accesses_ > 0) return;
  memory_.protect(PROT_NONE);
  install_explanation();
}

int64_t live_allocations() {
  int64_t count = 0;
  for (int device = 0; device < kDevices; ++device) count += DeviceMemory::of(device).allocations();
  return count;
}

}  // namespace emulation
