#include "core/device.h"

#include <charconv>

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

}  // namespace elwise
