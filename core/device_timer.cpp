#include "core/device_timer.h"

#include "core/cuda_backend.h"

namespace elwise {

DeviceTimer::DeviceTimer(Device device) : device_(device), start_(std::chrono::steady_clock::now()) {
  if constexpr (kBuiltWithCuda) {
    if (device.type == DeviceType::cuda) cuda::start_timer(device.index);
  }
}

double DeviceTimer::stop() {
  if constexpr (kBuiltWithCuda) {
    if (device_.type == DeviceType::cuda) return cuda::stop_timer(device_.index);
  }
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
}

}  // namespace elwise
