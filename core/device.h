#pragma once

#include <ostream>
#include <string>
#include <string_view>

#include "core/error.h"

namespace elwise {

/// Where a tensor lives. `meta` tensors have a shape and count bytes, but hold no memory and run no kernel.
enum class DeviceType : uint8_t { cpu, cuda, meta };

struct Device {
  DeviceType type = DeviceType::cpu;
  int index = 0;  // which GPU, for cuda

  bool operator==(const Device&) const = default;
};

inline constexpr Device kCpu{DeviceType::cpu, 0};
inline constexpr Device kMeta{DeviceType::meta, 0};

inline std::ostream& operator<<(std::ostream& out, Device device) {
  switch (device.type) {
    case DeviceType::cpu:
      return out << "cpu";
    case DeviceType::cuda:
      return out << "cuda:" << device.index;
    case DeviceType::meta:
      return out << "meta";
  }
  return out;
}

/// "cpu", "meta", "cuda" (index 0) or "cuda:N". Throws Error for anything else.
Device parse_device(std::string_view name);

/// GPUs that this process can use: 0 in a library built without CUDA.
int cuda_device_count();

/// Throws Error "no CUDA device: .." with the reason where `device` is a GPU that is not there.
void check_available(Device device);

/// Waits until `device` has done all that the calling thread asked of it. Kernels on a GPU run on their own:
/// what one found wrong with its input (an index out of range) is thrown here, or where results are read.
void synchronize(Device device);

/// True in a library built with -DELWISE_CUDA=ON.
#ifdef ELWISE_BUILT_WITH_CUDA
inline constexpr bool kBuiltWithCuda = true;
#else
inline constexpr bool kBuiltWithCuda = false;
#endif

}  // namespace elwise
