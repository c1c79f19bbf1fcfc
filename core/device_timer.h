#pragma once

#include <chrono>

#include "core/device.h"

namespace elwise {

/// Times what the calling thread asks of a device, from construction on: on a GPU from when its stream gets
/// there. Such timers are not nested. On meta it is the host's time.
class DeviceTimer {
 public:
  explicit DeviceTimer(Device device);

  /// Waits for the device; seconds since the start. Throws what synchronize() throws. To be called once.
  double stop();

 private:
  Device device_;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace elwise
