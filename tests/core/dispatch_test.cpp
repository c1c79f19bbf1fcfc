#include "core/dispatch.h"

#include <thread>

#include "tests/support/op_test.h"

namespace elwise {

/// A kernel that counts its calls and remembers its argument.
struct CountCalls {
  int64_t n;
  int64_t optional = 3;
  DType dtype = DType::f32;

  KernelCost cost() const {
    return {.flops = static_cast<double>(n), .bytes_read = 2 * static_cast<double>(n), .bytes_written = 8};
  }
};

namespace {
int64_t calls = 0;
CountCalls last{};
}  // namespace

namespace cpu {
static void count_calls(const CountCalls& arguments) {
  ++calls;
  last = arguments;
}
}  // namespace cpu
namespace cuda {
[[maybe_unused]] static void count_calls(const CountCalls&) {}
}  // namespace cuda

namespace {

TEST_CASE("a kernel on the CPU runs with its arguments and adds its cost") {
  const CostTotals before = cost_totals();
  calls = 0;
  ELWISE_DISPATCH(kCpu, count_calls, {.n = 5});
  CHECK(calls == 1);
  CHECK(last.n == 5);
  CHECK(last.optional == 3);
  ELWISE_DISPATCH(kCpu, count_calls, {.n = 6, .optional = 4});
  CHECK(last.optional == 4);
  const CostTotals after = cost_totals();
  CHECK(after.kernels - before.kernels == 2);
  CHECK(after.flops - before.flops == 11);
  CHECK(after.bytes_read - before.bytes_read == 22);
  CHECK(after.bytes_written - before.bytes_written == 16);
}

TEST_CASE("on meta no kernel runs but the cost is added") {
  const CostTotals before = cost_totals();
  calls = 0;
  ELWISE_DISPATCH(kMeta, count_calls, {.n = int64_t{1} << 50});
  CHECK(calls == 0);
  CHECK(cost_totals().kernels - before.kernels == 1);
  CHECK(cost_totals().flops - before.flops == 0x1p50);
}

TEST_CASE("a build without CUDA says so") {
  if (kBuiltWithCuda) return;
  calls = 0;
  testing::check_error(
      [] {
        ELWISE_DISPATCH((Device{DeviceType::cuda, 0}), count_calls, {.n = 1});
      },
      "count_calls: this library was built without CUDA (configure with ELWISE_CUDA=ON)");
  CHECK(calls == 0);
}

TEST_CASE("costs are summed per thread") {
  const int64_t before = cost_totals().kernels;
  std::thread([] {
    ELWISE_DISPATCH(kMeta, count_calls, {.n = 1});
    CHECK(cost_totals().kernels == 1);
  }).join();
  CHECK(cost_totals().kernels == before);
}

}  // namespace
}  // namespace elwise
