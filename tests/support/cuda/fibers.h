#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>

// The threads of a CUDA block as fibers of one host thread: each runs until it waits for others (at a barrier
// or a shuffle), so that every interleaving is one that this scheduler chose.

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

namespace emulation {

inline constexpr int kWarpSize = 32;

/// What a GPU would do silently, or not at all: thrown where the host launches or waits for the kernel.
class Fault : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// In which order the threads of a block run between two waits. A missing barrier shows in some order only.
enum class Order : uint8_t { forward, reverse, shuffled };
void set_order(Order order);
Order order();

/// Runs `body` for every thread of every block. Throws Fault.
void run_grid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& body);

// For code that runs in such a thread:

struct Position {
  uint3 thread, block;
  dim3 block_size, grid_size;
};
extern Position current;

/// The block's dynamic shared memory, aligned to 16 bytes and filled with NaN.
void* dynamic_shared();

/// Returns the number of the block's threads for which `predicate` holds. `site` is "file:line". Reports a
/// barrier that not all threads reach.
int barrier(const char* site, bool predicate = true);

/// What the lanes of `mask` bring to a common point. Reports a lane outside its own mask, and lanes that
/// never come.
struct Exchange {
  uint32_t lanes;          // those that came: `mask` without the threads that have ended
  const uint64_t* values;  // [32]
};
Exchange exchange(uint32_t mask, uint64_t value, const char* what);

int lane();

/// Ends the kernel: reports `message` with the place of the calling thread.
[[noreturn]] void fault(const std::string& message);

}  // namespace emulation
