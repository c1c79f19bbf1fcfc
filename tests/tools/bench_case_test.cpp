#include "tools/bench_case.h"

#include <doctest/doctest.h>

#include <cmath>
#include <map>
#include <set>

#include "tools/paired_times.h"

namespace elwise::tools {
namespace {

/// Of each kernel the case with the fewest elements.
std::map<std::string, BenchCase> smallest_cases() {
  std::map<std::string, BenchCase> smallest;
  for (const BenchCase& bench : bench_cases()) {  // listed from small to large
    smallest.emplace(bench.kernel, bench);
  }
  return smallest;
}

TEST_CASE("the check passes right outputs and finds a wrong or missing element in any of them") {
  for (const auto& [kernel, bench] : smallest_cases()) {
    CAPTURE(bench.form);
    const std::vector<KernelCall> calls = make_calls(bench, {}, 0);
    REQUIRE(calls.size() == 1);
    const KernelCall& call = calls[0];
    const bool updates = kernel == "adam_step" || kernel == "index_select_backward";
    if (!updates) CHECK(fault_of(call).find("not written, or not finite") != std::string::npos);
    call.run();
    CHECK_MESSAGE(fault_of(call).empty(), fault_of(call));
    CHECK(call.cost.bytes_read + call.cost.bytes_written > 0);
    CHECK(!call.outputs.empty());
    for (const Tensor& output : call.outputs) {
      float* first = output.data<float>();
      const float right = first[0];
      first[0] = right * 1.5F + 1;
      CHECK(fault_of(call).find("element 0 is ") != std::string::npos);
      first[0] = right;
      float& middle = first[output.count() / 2];
      const float right_middle = middle;
      middle = NAN;
      CHECK(fault_of(call).find("not written, or not finite") != std::string::npos);
      middle = right_middle;
    }
  }
}

TEST_CASE("a kernel that computes something else is at fault") {
  Operands operands(1, {});
  const Tensor x = operands.uniform({100});
  Tensor y = operands.output({100});
  struct Copy {
    DType dtype;
    const float* x;
    float* y;
    KernelCost cost() const { return {.flops = 0, .bytes_read = 400, .bytes_written = 400}; }
  };
  const auto doubled = [](Device, const Copy& copy) {
    for (int i = 0; i < 100; ++i) copy.y[i] = 2 * copy.x[i];
  };
  const KernelCall call = operands.call(doubled, Copy{DType::f32, x.data<float>(), y.data<float>()}, [=] {
    return difference("y", DType::f32, values_of(y), values_of(x));
  });
  call.run();
  CHECK(fault_of(call).starts_with("y: element "));
  y.copy_from(x);
  CHECK(fault_of(call).empty());
}

TEST_CASE("names are unique") {
  std::set<std::string> names;
  for (const BenchCase& bench : bench_cases()) {
    const std::string name = bench.name(DType::f32);
    CHECK_MESSAGE(names.insert(name).second, name);
  }
}

TEST_CASE("EA-series must move q, k, v, y forward and twice three tensors and dy backward") {
  for (const BenchCase& bench : attention_bench_cases()) {
    const bool forward = bench.name(DType::f32) == "ea_series_forward/f32/1x512x768/t6/causal";
    if (!forward && bench.name(DType::f32) != "ea_series_backward/f32/1x512x768/t6/causal") continue;
    const KernelCost cost = make_calls(bench, {}, 0)[0].cost;
    CHECK((cost.bytes_read + cost.bytes_written) / (512 * 768) == (forward ? 16 : 28));
  }
}

TEST_CASE("calls on operands of their own until they move enough") {
  BenchCase bench;
  for (const BenchCase& each : bench_cases()) {
    if (each.name(DType::f32) == "sum_forward/f32/512x768/rows") bench = each;
  }
  const double bytes = 4.0 * (512 * 768 + 768);
  const std::vector<KernelCall> calls = make_calls(bench, {}, 2.5 * bytes);
  REQUIRE(calls.size() == 3);
  CHECK(calls[0].outputs[0].data() != calls[1].outputs[0].data());
  CHECK(calls[0].operands[0].data() != calls[1].operands[0].data());
}

TEST_CASE("samples are spread from the first to the last") {
  CHECK(spread(3, 5) == std::vector<int64_t>{0, 1, 2});
  CHECK(spread(101, 5) == std::vector<int64_t>{0, 25, 50, 75, 100});
  CHECK(spread(9, 2) == std::vector<int64_t>{0, 8});
  CHECK(values_at(from_vector<float>({0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, {2, 3, 2}), 2, 3, 2, {2, 0}) ==
        Values{4, 5, 0, 1, 10, 11, 6, 7});
}

TEST_CASE("rates are medians over pairs of a kernel and the roofline after it") {
  PairedTimes times({.flops = 30, .bytes_read = 60, .bytes_written = 40}, DType::f32);
  CHECK(times.rates().copy_share == 0);
  const auto pair = [&](std::initializer_list<double> seconds, double copy, double flops) {
    for (const double each : seconds) times.add(each);
    CHECK(times.due());
    times.close(
        {.copy_bytes_per_s = copy, .f64_flops_per_s = 1, .f32_flops_per_s = flops, .bf16_flops_per_s = 1});
    CHECK(!times.due());
    CHECK(!times.pending());
  };
  times.add(0.001);
  CHECK(!times.due());
  CHECK(times.pending());
  pair({1, 0.001, 1}, 200, 1000);  // median 0.5005 of 0.001, 0.001, 1, 1
  pair({1}, 200, 40);              // bound by arithmetic: 0.75 s
  pair({2, 2, 9}, 50, 1000);       // the machine was slower
  CHECK(times.pairs() == 3);
  CHECK(times.rates().seconds == 1);
  CHECK(times.rates().copy_share == doctest::Approx(0.9990));      // of 0.9990, 0.5, 1
  CHECK(times.rates().roofline_share == doctest::Approx(0.9990));  // of 0.9990, 0.75, 1
  CHECK(times.rates().copy_bytes_per_s == 200);
}

}  // namespace
}  // namespace elwise::tools
