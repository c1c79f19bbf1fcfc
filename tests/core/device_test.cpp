#include "core/device.h"

#include "tests/support/op_test.h"

namespace elwise {
namespace {

TEST_CASE("devices are parsed from what they print as") {
  CHECK(parse_device("cpu") == kCpu);
  CHECK(parse_device("meta") == kMeta);
  CHECK(parse_device("cuda") == Device{DeviceType::cuda, 0});
  CHECK(parse_device("cuda:0") == Device{DeviceType::cuda, 0});
  CHECK(parse_device("cuda:13") == Device{DeviceType::cuda, 13});
  for (const char* name : {"cpu", "meta", "cuda:0", "cuda:7"}) {
    CHECK(detail::concatenate(parse_device(name)) == name);
  }
  CHECK(Device{DeviceType::cuda, 0} != Device{DeviceType::cuda, 1});
}

TEST_CASE("anything else is an error that says what is accepted") {
  for (const char* name : {"", "gpu", "CPU", "cpu ", "cpu:0", "cuda:", "cuda:-1", "cuda:1x", "cuda: 1",
                           "cuda:99999999999", "metal"}) {
    testing::check_error([&] { parse_device(name); },
                         std::string("device: expected cpu, meta, cuda or cuda:N, got '") + name + "'");
  }
}

}  // namespace
}  // namespace elwise
