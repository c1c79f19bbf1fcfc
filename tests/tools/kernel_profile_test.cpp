#include "tools/kernel_profile.h"

#include "tests/support/op_test.h"

namespace elwise::tools {
namespace {

/// A step of `seconds` in which "copy" took `copy_seconds` for 100 bytes.
ProfiledStep step(double seconds, double copy_seconds) {
  const Roofline roofline{
      .copy_bytes_per_s = 200, .f64_flops_per_s = 1, .f32_flops_per_s = 10, .bf16_flops_per_s = 10};
  const KernelProfile copy{
      "copy", DType::f32, 2, copy_seconds, {.flops = 0, .bytes_read = 50, .bytes_written = 50}};
  const KernelProfile product{
      "matmul", DType::f32, 1, 0.5, {.flops = 4, .bytes_read = 1, .bytes_written = 1}};
  return {{copy, product}, seconds, roofline};
}

TEST_CASE("a summary has medians over the steps and shares of what the machine could do") {
  const std::vector<KernelSummary> summaries = summarize({step(10, 1), step(10, 4), step(20, 2)});
  REQUIRE(summaries.size() == 2);
  CHECK(summaries[0].kernel == "copy");
  CHECK(summaries[0].calls == 2);
  CHECK(*summaries[0].ms == 2000);
  CHECK(*summaries[0].step_share == doctest::Approx(0.1));
  CHECK(*summaries[0].roofline_share == doctest::Approx(0.25));  // 0.5 s in 2 s
  CHECK(*summaries[1].roofline_share == doctest::Approx(0.8));   // 0.4 s in 0.5 s

  const std::string text = profile_text(summaries);
  for (const char* cell : {"2000.00", "10.0 %", "25 %", "80 %"}) {
    CHECK_MESSAGE(text.find(cell) != std::string::npos, text);
  }
  CHECK(text.find("outside kernels: 85.0 % of the step") != std::string::npos);
  const nlohmann::ordered_json json = to_json(summaries);
  CHECK(json[0]["bytes"] == 100);
  CHECK(json[1]["roofline_share"] == doctest::Approx(0.8));
}

TEST_CASE("where nothing ran there are no rates") {
  ProfiledStep meta = step(10, 0);
  meta.roofline.reset();
  const std::vector<KernelSummary> summaries = summarize({meta});
  const nlohmann::ordered_json json = to_json(summaries);
  for (const char* field : {"ms", "step_share", "roofline_share"}) CHECK(json[0][field].is_null());
  CHECK(json[0]["calls"] == 2);
  const std::string text = profile_text(summaries);
  CHECK_MESSAGE(text.find("copy") != std::string::npos, text);
  CHECK_MESSAGE(text.find('%') == std::string::npos, text);
  CHECK(summarize({}).empty());
}

}  // namespace
}  // namespace elwise::tools
