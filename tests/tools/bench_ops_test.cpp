#include <doctest/doctest.h>

#include <cmath>
#include <fstream>
#include <string>

#include <nlohmann/json.hpp>

#include "tests/support/run_program.h"
#include "tests/support/temporary_folder.h"

// The program as a user runs it.

namespace elwise::testing {
namespace {

Run run(const std::string& arguments) {
  return run_command(ELWISE_TOOLS_DIR "/bench_ops " + arguments);
}

TEST_CASE("what is timed has its name and all counters") {
  const TemporaryFolder folder;
  const auto path = folder / "bench.json";
  const Run result = run(
      "--threads 2 --benchmark_min_time=0.001 --benchmark_out=" + path.string() +
      " '--benchmark_filter=^(ea_series_forward/f32/1x512x768/t2/causal|binary_forward/f32/512x768/add)$'");
  CHECK_MESSAGE(result.status == 0, result.output);
  std::ifstream file(path);
  const nlohmann::json json = nlohmann::json::parse(file);
  CHECK(json["context"]["elwise_threads"] == "2");
  CHECK(json["context"]["elwise_operands"] == "cold");
  const nlohmann::json& lines = json["benchmarks"];
  REQUIRE(lines.size() == 2);
  CHECK(lines[0]["name"] == "ea_series_forward/f32/1x512x768/t2/causal");
  CHECK(lines[1]["name"] == "binary_forward/f32/512x768/add");
  for (const nlohmann::json& line : lines) {
    for (const char* counter : {"real_time", "iterations", "copy_share", "roofline_share", "bytes_per_s",
                                "flops_per_s", "copy_bytes_per_s", "pairs"}) {
      REQUIRE_MESSAGE(line.contains(counter), counter);
      CHECK_MESSAGE(line[counter].get<double>() > 0, counter);
      CHECK_MESSAGE(std::isfinite(line[counter].get<double>()), counter);
    }
    // Both are medians of the same times; where the bytes decide they differ by rounding only.
    CHECK(line["roofline_share"].get<double>() >= line["copy_share"].get<double>() * (1 - 1e-9));
    CHECK(line["time_unit"] == "us");
  }
}

TEST_CASE("--warm") {
  const Run result = run(
      "--warm --benchmark_min_time=0.001 --benchmark_format=json --benchmark_filter=sum_forward/f32/512x768");
  CHECK(result.status == 0);
  CHECK_MESSAGE(result.output.find("\"elwise_operands\": \"warm\"") != std::string::npos, result.output);
  CHECK_MESSAGE(result.output.find("sum_forward/f32/512x768/rows") != std::string::npos, result.output);
}

TEST_CASE("the list has every kernel, and names that the issue tracker quotes") {
  const Run result = run("--benchmark_list_tests");
  CHECK(result.status == 0);
  for (const char* name : {"ea_series_forward/f32/4x2048x768/t6/causal",
                           "ea_series_backward/f32/4x2048x768/t2\n",
                           "ea_forward/f32/1x512x768",
                           "ea_backward/",
                           "linear_attention_forward/f32/1x512x768/causal",
                           "linear_attention_backward/",
                           "aft_keys/",
                           "aft_outputs/",
                           "aft_output_gradients/",
                           "aft_key_gradients/",
                           "aft_bias_gradient/",
                           "softmax_forward/",
                           "tiled_attention_forward/f32/1x2048x768/causal",
                           "tiled_attention_backward/f32/1x512x768\n",
                           "softmax_backward/",
                           "matmul/f32/512x3072x768/NT/bias",
                           "layer_norm_forward/f32/8192x768/residual",
                           "layer_norm_backward/",
                           "unary_forward/f32/512x3072/gelu",
                           "unary_backward/",
                           "binary_forward/",
                           "sum_forward/",
                           "adam_step/f32/23440896",
                           "dropout/",
                           "cross_entropy_forward/f32/77x30522",
                           "cross_entropy_backward/",
                           "index_select_forward/",
                           "index_select_backward/",
                           "cumsum/",
                           "strided_copy/"}) {
    CHECK_MESSAGE(result.output.find(name) != std::string::npos, name);
  }
}

TEST_CASE("bad usage: exit 2") {
  const std::pair<const char*, const char*> cases[] = {
      {"--nonsense", "unknown option --nonsense"},
      {"nonsense", "unknown option nonsense"},
      {"--threads 0", "--threads"},
      {"--benchmark_format=xml", "--benchmark_format"},
      {"--benchmark_out_format=xml", "--benchmark_out_format"},
      {"--benchmark_min_time=soon", "--benchmark_min_time"},
      {"--benchmark_filter=nonsense", "nonsense"},
  };
  for (const auto& [arguments, message] : cases) {
    CAPTURE(arguments);
    const Run result = run(arguments);
    CHECK_MESSAGE(result.status == 2, result.output);
    CHECK_MESSAGE(result.output.find(message) != std::string::npos, result.output);
  }
}

}  // namespace
}  // namespace elwise::testing
