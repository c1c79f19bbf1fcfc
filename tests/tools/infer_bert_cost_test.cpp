#include <doctest/doctest.h>

#include <map>
#include <string>

#include "tests/support/figures.h"
#include "tests/support/run_program.h"
#include "tests/support/temporary_folder.h"
#include "tools/generation_cost.h"

// infer_bert_cost as a user runs it, and what it is made of.

namespace elwise::testing {
namespace {

/// A model of a few thousand parameters: a run takes milliseconds.
const std::string kTiny = "--layers 2 --hidden 32 --heads 4 --intermediate 64 --vocab 300 ";

Run run(const std::string& arguments) {
  return run_command(std::string(ELWISE_TOOLS_DIR) + "/infer_bert_cost " + kTiny + arguments);
}

/// Of the tiny model's two layers, for one row in f32.
constexpr int64_t series_state_bytes(int64_t order) {
  return 2 * 32 * (2 * (order + 1) + 1) * 4;
}

}  // namespace

TEST_CASE("generations of all mechanisms: every JSON field, and states that grow or do not") {
  const TemporaryFolder folder;
  const auto json = folder / "cost.json";
  const Run result =
      run("--attention ea-2,ea-6,sa,la,aft,ea,ea-series-composed-2,none --batch 1,3 "
          "--length 300,4 --json " +
          json.string());
  CHECK_MESSAGE(result.status == 0, result.output);
  const auto lines = json_lines(json);
  REQUIRE(lines.size() == 8 * 2 * 2);
  for (const nlohmann::json& line : lines) {
    for (const char* field :
         {"attention", "device", "dtype", "batch", "length", "layers", "hidden", "heads", "intermediate",
          "vocabulary", "parameters", "total_ms", "ms_per_token", "last_step_ms", "state_bytes",
          "weight_bytes", "peak_bytes", "threads", "seed"}) {
      CHECK_MESSAGE((line.contains(field) && !line[field].is_null()), field);
    }
    CHECK(line["total_ms"].get<double>() > line["ms_per_token"].get<double>());
    CHECK(line["peak_bytes"].get<int64_t>() >
          line["weight_bytes"].get<int64_t>() + line["state_bytes"].get<int64_t>());
    const std::string attention = line["attention"];
    const int64_t state = line["state_bytes"], batch = line["batch"];
    if (attention == "ea-2") CHECK(state == batch * series_state_bytes(2));
    if (attention == "ea-6") CHECK(state == batch * series_state_bytes(6));
    if (attention == "none") CHECK(state == 0);
    if (attention == "sa") CHECK(state == batch * 2 * (2 * (line["length"] == 4 ? 256 : 512) * 32 * 4 + 8));
  }
  CHECK(lines[0]["length"] == 4);
  CHECK(lines[1]["length"] == 300);
  CHECK(result.output.find("ea-6 against sa, batch 3: ") != std::string::npos);
  CHECK(result.output.find("its state smaller at all of 4 .. 300 tokens") != std::string::npos);
}

TEST_CASE("--position times steps at positions, beside the time that reading the weights takes") {
  const TemporaryFolder folder;
  const auto json = folder / "cost.json";
  const Run result = run(
      "--attention ea-6,sa,la,aft,ea,none --batch 1,2 --position 8,1000 --steps 3 --json " + json.string());
  CHECK_MESSAGE(result.status == 0, result.output);
  const auto lines = json_lines(json);
  REQUIRE(lines.size() == 6 * 2 * 2);
  for (const nlohmann::json& line : lines) {
    for (const char* field : {"ms_per_token", "weight_floor_ms", "floor_ratio", "weight_bytes"})
      CHECK_MESSAGE(line[field].get<double>() > 0, field);
    CHECK(line["steps"] == 3);
    const bool far = line["position"] == 1000;
    const int64_t state = line["state_bytes"], batch = line["batch"];
    if (line["attention"] == "ea-6") CHECK(state == batch * series_state_bytes(6));
    if (line["attention"] == "sa") CHECK(state == batch * 2 * (2 * (far ? 1024 : 256) * 32 * 4 + 8));
  }
}

TEST_CASE("--dtype bf16 halves the weights and the caches, and leaves recurrent states f32") {
  const TemporaryFolder folder;
  const auto json = folder / "cost.json";
  const Run result = run(
      "--attention ea-6,sa,sa-tiled,ea,aft,la --position 8 --steps 2 --dtype bf16 --json " + json.string());
  CHECK_MESSAGE(result.status == 0, result.output);
  const auto lines = json_lines(json);
  REQUIRE(lines.size() == 6);
  constexpr int64_t kCacheBytes = 2 * (2 * 256 * 32 * 2 + 8), kLinearBytes = 2 * 4 * (8 * 8 + 8) * 4;
  for (const nlohmann::json& line : lines) {
    CHECK(line["dtype"] == "bf16");
    const std::string attention = line["attention"];
    const int64_t expected = attention == "ea-6" ? series_state_bytes(6)
                             : attention == "la" ? kLinearBytes
                                                 : kCacheBytes;
    CHECK_MESSAGE(line["state_bytes"] == expected, attention);
  }
}

TEST_CASE("--profile prints and writes each kernel's time at each position") {
  const TemporaryFolder folder;
  const auto json = folder / "cost.json";
  const Run result = run("--attention ea-6 --position 8,20 --steps 3 --profile --json " + json.string());
  CHECK_MESSAGE(result.status == 0, result.output);
  CHECK(result.output.find("ea-6, batch 1, position 20\n") != std::string::npos);
  const auto lines = json_lines(json);
  REQUIRE(lines.size() == 2);
  for (const nlohmann::json& line : lines) {
    std::map<std::string, int64_t> calls;
    for (const nlohmann::json& kernel : line["profile"]) {
      calls[kernel["kernel"]] = kernel["calls"];
      CHECK(kernel["ms"].get<double>() > 0);
    }
    CHECK(calls["ea_series_step"] == 2);  // one for each layer
    CHECK(calls["matmul"] >= 2 * 6 + 1);
  }
}

TEST_CASE("meta counts what the CPU counts, to the byte, and runs nothing") {
  const TemporaryFolder folder;
  const auto cpu = folder / "cpu.json", meta = folder / "meta.json";
  const std::string options = "--attention sa,ea-6,la,aft --batch 1,3 --length 4,300 --json ";
  CHECK(run(options + cpu.string()).status == 0);
  CHECK(run(options + meta.string() + " --device meta").status == 0);
  using Key = std::tuple<std::string, int64_t, int64_t>;  // the CPU takes the attentions in turn
  std::map<Key, nlohmann::json> expected, actual;
  const auto read = [](const auto& path, std::map<Key, nlohmann::json>& lines) {
    for (const nlohmann::json& line : json_lines(path))
      lines.emplace(Key(line["attention"], line["batch"], line["length"]), line);
  };
  read(cpu, expected);
  read(meta, actual);
  REQUIRE(expected.size() == 4 * 2 * 2);
  REQUIRE(actual.size() == expected.size());
  for (auto& [key, line] : actual) {
    for (const char* field : {"peak_bytes", "state_bytes", "weight_bytes", "parameters"})
      CHECK_MESSAGE(expected[key][field] == line[field], field);
    CHECK(line["total_ms"].is_null());
  }
}

TEST_CASE("infer_bert_cost, bad input: one line that says what is wrong") {
  const TemporaryFolder folder;
  const std::tuple<std::string, int, std::string> cases[] = {
      {"--attention nonsense", 2, "expected sa, sa-tiled, la, aft, ea, ea-N"},
      {"--length 0", 2, "--length: expected a number above 0, got 0"},
      {"--position 0", 2, "--position: expected a number above 0, got 0"},
      {"--position 8 --length 8", 2, "expected no --length"},
      {"--position 8 --device meta", 2, "expected --device cpu or cuda"},
      {"--steps 3", 2, "expected --position beside it"},
      {"--profile", 2, "expected --position beside it"},
      {"--batch -1", 2, "--batch: expected a number above 0, got -1"},
      {"--hidden 33", 2, "33 is not divisible by 4 heads"},
      {"--device tpu", 2, "expected cpu, meta"},
      {"--memory-budget lots", 2, "'lots' is not a size"},
      {"--json " + (folder / "no" / "such" / "folder.json").string(), 1, "cannot write"},
      {"--memory-budget 25MiB --position 100000 --attention sa --steps 1", 1,
       "sa does not fit: out of memory"},
      {"--attention aft --position 9000", 1, "aft learns a bias for each pair of positions"},
  };
  for (const auto& [arguments, status, message] : cases) {
    const Run result = run("--quiet " + arguments);
    CAPTURE(arguments);
    CHECK_MESSAGE(result.status == status, result.output);
    CHECK_MESSAGE(result.output.find(message) != std::string::npos, result.output);
    if (status == 2) CHECK_MESSAGE(count_lines(result.output) == 1, result.output);
  }
}

TEST_CASE("--plot draws memory and latency of generations, and of single steps") {
  if (!can_draw()) return;
  const TemporaryFolder folder;
  for (const std::string mode : {"--length 4,16", "--position 8,300 --steps 2"}) {
    const Run result = run("--quiet --attention ea-6,sa " + mode + " --plot " + folder.path().string());
    CHECK_MESSAGE(result.status == 0, result.output);
    CHECK(json_lines(folder / "generation.json").size() == 4);
  }
  check_figure(folder.path(), "generation-memory", {"generated tokens", "ea-6  3.75 KiB", "sa  128 KiB"});
  check_figure(folder.path(), "generation-latency", {"milliseconds per token", "ea-6  ", "sa  "});
  check_figure(folder.path(), "step-memory", {"tokens before", "ea-6  3.75 KiB", "sa  256 KiB"});
  check_figure(folder.path(), "step-latency", {"Latency of one step", "ea-6  ", "sa  "});
}

TEST_CASE("where curves cross") {
  using tools::crossing;
  CHECK(crossing({1, 2, 4}, {1, 2, 4}, {2, 2, 2}) == 2);
  CHECK(crossing({1, 2, 4}, {1, 1, 3}, {2, 2, 2}) == 3);
  CHECK(crossing({1, 2, 4}, {3, 1, 3}, {2, 2, 2}) == 3);   // for good
  CHECK(crossing({1, 2, 4}, {3, 3, 3}, {2, 2, 2}) == 1);   // everywhere
  CHECK_FALSE(crossing({1, 2, 4}, {3, 3, 2}, {2, 2, 2}));  // not at the end
  CHECK_FALSE(crossing({1, 2, 4}, {1, 1, 1}, {2, 2, 2}));
}

}  // namespace elwise::testing
