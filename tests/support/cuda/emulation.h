#pragma once

#include <cstdint>
#include <functional>

#include "tests/support/cuda/fibers.h"

// What tests ask of the emulation beside the CUDA API.

namespace emulation {

/// Eager streams run work when it is queued; lazy ones when something waits for it, so that a missing
/// dependency between streams, or between a stream and the host, shows.
enum class Streams : uint8_t { eager, lazy };
/// Waits for all work first.
void set_streams(Streams streams);
Streams streams();

/// Device allocations that were not freed, of all devices.
int64_t live_allocations();

/// Calls `observer` with the kernel's address each time before one runs; an empty function ends that. Waits
/// for all work first.
void observe_kernels(std::function<void(const void* kernel)> observer);

}  // namespace emulation
