#pragma once

#include <cstdint>
#include <string>

#include "core/device.h"

namespace elwise {
class CountingAllocator;
}

/// What core asks of the CUDA backend: declared here, defined in cuda/, and called only in a library built
/// with it (`if constexpr (kBuiltWithCuda)`). Each call works on the calling thread's stream of the device
/// and throws Error with the CUDA call that failed.
namespace elwise::cuda {

/// GPUs that this process can use.
int device_count();
/// Why device_count() is 0, in the driver's words.
std::string no_device_reason();

/// The allocator of cuda:`device`. Throws Error where there is no such device.
CountingAllocator& allocator(int device);

/// Makes cuda:`device` the one that this thread's kernels run on.
void set_device(int device);

/// Copies between the host and a device, or between devices. Returns once `from` may be changed and, if `to`
/// is on the host, once it holds the data; throws what synchronize() throws then.
void copy(void* to, Device to_device, const void* from, Device from_device, int64_t bytes);

/// Waits for all work of this thread's stream. Throws Error for what a kernel found wrong with its input
/// since the last time (an index out of range).
void synchronize(int device);

}  // namespace elwise::cuda
