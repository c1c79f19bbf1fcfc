#include "core/device.h"

#include <charconv>

#include "core/cuda_backend.h"

namespace elwise {

Device parse_device(std::string_view name) {
  if (name == "cpu") return kCpu;
  if (name == "meta") return kMeta;
  if (name == "cuda") return {DeviceType::cuda, 0};
  constexpr std::string_view kPrefix = "cuda:";
  if (name.starts_with(kPrefix)) {
    int index = -1;
    const char* end = name.data() + name.size();
    const auto parsed = std::from_chars(name.data() + kPrefix.size(), end, index);
    if (parsed.ec == std::errc() && parsed.ptr == end && index >= 0) return {DeviceType::cuda, index};
  }
  fail("device: expected cpu, meta, cuda or cuda:N, got '", name, "'");
}

int cuda_device_count() {
  if constexpr (kBuiltWithCuda) {
    return cuda::device_count();
  } else {
    return 0;
  }
}

void check_available(Device device) {
  if (device.type != DeviceType::cuda) return;
  if constexpr (kBuiltWithCuda) {
    const int count = cuda::device_count();
    ELWISE_CHECK(count > 0, "no CUDA device: ", cuda::no_device_reason());
    ELWISE_CHECK(device.index < count, "no CUDA device: expected cuda:0 .. cuda:", count - 1, ", got ",
                 device);
  } else {
    fail("no CUDA device: this library was built without CUDA (configure with ELWISE_CUDA=ON)");
  }
}

void synchronize(Device device) {
  if (device.type != DeviceType::cuda) return;
  check_available(device);
  if constexpr (kBuiltWithCuda) cuda::synchronize(device.index);
}

}  // namespace elwise
