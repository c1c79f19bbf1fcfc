#include "core/profiler.h"

#include <chrono>
#include <thread>

#include "core/dispatch.h"
#include "core/roofline.h"
#include "tests/support/op_test.h"

namespace elwise {

/// Kernels that sleep.
struct Nap {
  DType dtype;
  int milliseconds;
  KernelCost cost() const { return {.flops = 10, .bytes_read = 20, .bytes_written = 30}; }
};
struct Conversion {
  DType from;
  KernelCost cost() const { return {}; }
};

namespace cpu {
static void nap(const Nap& arguments) {
  std::this_thread::sleep_for(std::chrono::milliseconds(arguments.milliseconds));
}
static void conversion(const Conversion&) {}
}  // namespace cpu
namespace cuda {
[[maybe_unused]] static void nap(const Nap&) {}
[[maybe_unused]] static void conversion(const Conversion&) {}
}  // namespace cuda

namespace {

TEST_CASE("a profiler sees each kernel's calls, time and cost, by dtype") {
  const Profiler profiler;
  CHECK(profiler.kernels().empty());
  ELWISE_DISPATCH(kCpu, nap, {.dtype = DType::f32, .milliseconds = 1});
  ELWISE_DISPATCH(kCpu, nap, {.dtype = DType::f32, .milliseconds = 2});
  ELWISE_DISPATCH(kCpu, nap, {.dtype = DType::f64, .milliseconds = 30});
  ELWISE_DISPATCH(kMeta, conversion, {.from = DType::bf16});
  const std::vector<KernelProfile> kernels = profiler.kernels();
  REQUIRE(kernels.size() == 3);
  CHECK(kernels[0].kernel == "nap");
  CHECK(kernels[0].dtype == DType::f64);
  CHECK(kernels[0].calls == 1);
  CHECK(kernels[0].seconds >= 0.030);
  CHECK(kernels[1].dtype == DType::f32);
  CHECK(kernels[1].calls == 2);
  CHECK(kernels[1].seconds >= 0.003);
  CHECK(kernels[1].seconds < kernels[0].seconds);
  CHECK(kernels[1].cost.flops == 20);
  CHECK(kernels[1].cost.bytes_read == 40);
  CHECK(kernels[1].cost.bytes_written == 60);
  CHECK(kernels[2].kernel == "conversion");
  CHECK(kernels[2].dtype == DType::bf16);
}

TEST_CASE("profilers nest, and see only their own time and thread") {
  Profiler outer;
  ELWISE_DISPATCH(kMeta, nap, {.dtype = DType::f32, .milliseconds = 0});
  {
    const Profiler inner;
    ELWISE_DISPATCH(kMeta, nap, {.dtype = DType::f32, .milliseconds = 0});
    CHECK(inner.kernels().at(0).calls == 1);
    std::thread([] { ELWISE_DISPATCH(kMeta, nap, {.dtype = DType::f32, .milliseconds = 0}); }).join();
  }
  ELWISE_DISPATCH(kMeta, nap, {.dtype = DType::f32, .milliseconds = 0});
  CHECK(outer.kernels().at(0).calls == 3);
  outer.reset();
  CHECK(outer.kernels().empty());
}

TEST_CASE("a profiler's observer sees every call on its own, as it ends") {
  std::vector<KernelProfile> calls;
  const Profiler profiler([&](const KernelProfile& call) { calls.push_back(call); });
  ELWISE_DISPATCH(kCpu, nap, {.dtype = DType::f64, .milliseconds = 2});
  REQUIRE(calls.size() == 1);
  ELWISE_DISPATCH(kMeta, conversion, {.from = DType::bf16});
  ELWISE_DISPATCH(kCpu, nap, {.dtype = DType::f64, .milliseconds = 0});
  REQUIRE(calls.size() == 3);
  CHECK(calls[0].kernel == "nap");
  CHECK(calls[0].dtype == DType::f64);
  CHECK(calls[0].seconds >= 0.002);
  CHECK(calls[1].kernel == "conversion");
  CHECK(calls[2].calls == 1);
  CHECK(calls[2].cost.bytes_read == 20);
  CHECK(profiler.kernels().at(0).calls == 2);
}

TEST_CASE("the roofline bounds work by its bytes or its operations, whichever takes longer") {
  const Roofline roofline{
      .copy_bytes_per_s = 100, .f64_flops_per_s = 10, .f32_flops_per_s = 20, .bf16_flops_per_s = 40};
  const KernelCost moves{.flops = 40, .bytes_read = 300, .bytes_written = 200};
  CHECK(roofline.seconds(moves, DType::f32) == 5);
  CHECK(roofline.seconds(moves, DType::bf16) == 5);
  const KernelCost computes{.flops = 200, .bytes_read = 60, .bytes_written = 40};
  CHECK(roofline.seconds(computes, DType::f64) == 20);
  CHECK(roofline.seconds(computes, DType::f32) == 10);
  CHECK(roofline.seconds(computes, DType::bf16) == 5);
  CHECK(roofline.seconds(computes, DType::i64) == 10);
}

TEST_CASE("a measured roofline is one that a machine can have") {
  const Roofline roofline = RooflineMeter().measure();
  CHECK(roofline.copy_bytes_per_s > 1e7);
  CHECK(roofline.copy_bytes_per_s < 1e13);
  CHECK(roofline.f64_flops_per_s > 1e7);
  CHECK(roofline.f32_flops_per_s < 1e15);
  CHECK(roofline.bf16_flops_per_s > 1e7);
}

}  // namespace
}  // namespace elwise
