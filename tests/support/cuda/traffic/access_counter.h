#pragma once

#include <cstdint>

// Counts the accesses of emulated kernels to device memory. Code that g++ compiles with -fsanitize=thread
// calls
// __tsan_read4(address) and the like before each access: a program with access_counter.cpp, and without
// ThreadSanitizer's library, gets them counted.

namespace emulation {

/// What a GPU moves at least.
inline constexpr int kSectorBytes = 32;

/// Bytes of device memory.
struct Traffic {
  int64_t read = 0;  // that threads asked for: before any cache
  int64_t written = 0;
  int64_t sectors_read = 0;  // of the different sectors among them: with a cache that loses nothing
  int64_t sectors_written = 0;

  Traffic& operator+=(const Traffic& other);
};

/// What instrumented code did since the last call.
Traffic take_traffic();

}  // namespace emulation
