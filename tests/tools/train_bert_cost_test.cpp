#include <doctest/doctest.h>

#include <fstream>
#include <string>

#include "tests/support/run_program.h"
#include "tests/support/temporary_folder.h"

// The program as a user runs it.

namespace elwise::testing {
namespace {

Run run(const std::string& arguments) {
  return run_command(std::string(ELWISE_TOOLS_DIR) + "/train_bert_cost " + arguments);
}

/// A model of a few thousand parameters: a run takes milliseconds.
const std::string kTiny =
    "--layers 2 --hidden 32 --heads 4 --intermediate 64 --vocab 300 --seq-len 24 --batch 2 --steps 2 ";

}  // namespace

TEST_CASE("every measurement has all JSON fields") {
  const TemporaryFolder folder;
  const auto path = folder / "cost.json";
  const Run result =
      run(kTiny + "--attention sa,la,aft,ea,ea-2,ea-6,ea-series-composed-6,none --json " + path.string());
  CHECK_MESSAGE(result.status == 0, result.output);
  const auto lines = json_lines(path);
  REQUIRE(lines.size() == 8);
  for (const nlohmann::json& line : lines) {
    for (const char* field : {"attention",
                              "device",
                              "dtype",
                              "causal",
                              "batch",
                              "seq_len",
                              "parameters",
                              "step_ms",
                              "forward_ms",
                              "backward_ms",
                              "optimizer_ms",
                              "tokens_per_s",
                              "peak_bytes",
                              "parameter_bytes",
                              "gradient_bytes",
                              "optimizer_bytes",
                              "activation_peak_bytes",
                              "flops",
                              "matmul_floor_ms",
                              "floor_ratio",
                              "loss_first",
                              "loss_last",
                              "threads",
                              "seed"}) {
      CHECK_MESSAGE((line.contains(field) && !line[field].is_null()), field);
    }
    CHECK(line["peak_bytes"].get<int64_t>() >= line["parameter_bytes"].get<int64_t>());
    CHECK(line["parameter_bytes"].get<int64_t>() >= 4 * line["parameters"].get<int64_t>());
    CHECK(line["step_ms"].get<double>() >= line["forward_ms"].get<double>());
  }
  CHECK(lines[0]["order"].is_null());
  CHECK(lines[5]["order"] == 6);
}

TEST_CASE("--profile prints and writes each kernel's time and share of the roofline") {
  const TemporaryFolder folder;
  const auto path = folder / "cost.json";
  const Run result = run(kTiny + "--attention ea-6 --no-matmul-floor --profile --json " + path.string());
  CHECK_MESSAGE(result.status == 0, result.output);
  for (const char* text : {"of roofline", "ea_series_backward", "outside kernels: "}) {
    CHECK_MESSAGE(result.output.find(text) != std::string::npos, result.output);
  }
  const nlohmann::json profile = json_lines(path).at(0)["profile"];
  double step_share = 0;
  int64_t products = 0;
  for (const nlohmann::json& kernel : profile) {
    CHECK(kernel["ms"].get<double>() > 0);
    CHECK(kernel["roofline_share"].get<double>() > 0);
    step_share += kernel["step_share"].get<double>();
    if (kernel["kernel"] == "matmul") products = kernel["calls"].get<int64_t>();
  }
  CHECK(step_share <= 1);
  CHECK(products ==
        3 * (2 * 6 + 2));  // forward and two gradients of six linear layers a block and two of the head

  CHECK(run(kTiny + "--attention ea-6 --device meta --profile --json " + path.string()).status == 0);
  CHECK(json_lines(path).at(0)["profile"].size() == profile.size());
}

TEST_CASE("meta reports the CPU's memory to the byte and runs nothing") {
  const TemporaryFolder folder;
  const auto cpu = folder / "cpu.json", meta = folder / "meta.json";
  for (const char* options : {"--attention sa,ea-6", "--attention ea-6 --checkpoint-activations --causal"}) {
    CHECK(run(kTiny + options + " --no-matmul-floor --json " + cpu.string()).status == 0);
    CHECK(run(kTiny + options + " --device meta --json " + meta.string()).status == 0);
    const auto expected = json_lines(cpu), actual = json_lines(meta);
    REQUIRE(expected.size() == actual.size());
    for (size_t i = 0; i < expected.size(); ++i) {
      for (const char* field : {"peak_bytes", "parameter_bytes", "gradient_bytes", "optimizer_bytes",
                                "activation_peak_bytes", "flops", "parameters"}) {
        CHECK_MESSAGE(expected[i][field] == actual[i][field], field);
      }
      CHECK(actual[i]["step_ms"].is_null());
      CHECK(actual[i]["loss_first"].is_null());
    }
  }
}

TEST_CASE("the loss falls on real text") {
  const TemporaryFolder folder;
  std::string text;
  for (int i = 0; i < 200; ++i) text += "The quick brown fox jumps over the lazy dog; element by element. ";
  const auto path = folder.write("text.txt", text), json = folder / "cost.json";
  const Run result =
      run(kTiny + "--attention ea-6,sa --steps 30 --learning-rate 0.01 --no-matmul-floor --text " +
          path.string() + " --json " + json.string());
  CHECK_MESSAGE(result.status == 0, result.output);
  for (const nlohmann::json& line : json_lines(json)) {
    CHECK(line["loss_last"].get<double>() < 0.8 * line["loss_first"].get<double>());
  }
}

TEST_CASE("the same seed gives the same losses, with any number of threads") {
  const TemporaryFolder folder;
  const auto json = folder / "cost.json";
  std::vector<double> losses;
  std::vector<int> threads;
  for (const char* options : {"--threads 1,2 --seed 3", "--threads 2 --seed 4"}) {
    CHECK(run(kTiny + "--attention ea-6 --no-matmul-floor " + options + " --json " + json.string()).status ==
          0);
    for (const nlohmann::json& line : json_lines(json)) {
      threads.push_back(line["threads"].get<int>());
      losses.push_back(line["loss_last"].get<double>());
    }
  }
  REQUIRE(threads == std::vector{1, 2, 2});
  CHECK(losses[0] == losses[1]);
  CHECK(losses[1] != losses[2]);
}

TEST_CASE("--step-in-backward changes no loss and holds fewer gradients") {
  const TemporaryFolder folder;
  const auto json = folder / "cost.json";
  std::vector<nlohmann::json> lines;
  for (const char* option : {"", " --step-in-backward"}) {
    CHECK(run(kTiny + "--attention ea-6 --no-matmul-floor" + option + " --json " + json.string()).status ==
          0);
    lines.push_back(json_lines(json).at(0));
  }
  CHECK(lines[1]["step_in_backward"] == true);
  CHECK(lines[1]["loss_last"] == lines[0]["loss_last"]);
  CHECK(lines[1]["gradient_bytes"].get<int64_t>() < lines[0]["gradient_bytes"].get<int64_t>() / 2);
}

TEST_CASE("bad input: one line that says what is wrong, exit 2 for usage and 1 for a failure") {
  const TemporaryFolder folder;
  const std::string empty = folder.write("empty.txt", "").string();
  const std::tuple<std::string, int, std::string> cases[] = {
      {"--attention nonsense", 2, "expected sa, sa-tiled, la, aft, ea, ea-N"},
      {"--attention ea-3", 2, "order 3, expected an even one in 0 .. 16"},
      {"--attention ea-18", 2, "expected an even one in 0 .. 16"},
      {"--seq-len 0", 2, "--seq-len: expected a number above 0, got 0"},
      {"--batch -1", 2, "--batch: expected a number above 0, got -1"},
      {"--hidden 33", 2, "33 is not divisible by 4 heads"},
      {"--dtype f16", 2, "--dtype"},
      {"--threads 1,0", 2, "--threads"},
      {"--device tpu", 2, "expected cpu, meta"},
      {"--device cuda:99", 1, "no CUDA device: "},
      {"--memory-budget lots", 2, "'lots' is not a size"},
      {"--nonsense", 2, "--nonsense"},
      {"--text " + (folder / "missing.txt").string(), 1, "missing.txt"},
      {"--text " + empty, 1, "is empty"},
      {"--json " + (folder / "no" / "such" / "folder.json").string(), 1, "cannot write"},
      {"--memory-budget 4KiB", 1, "does not fit: out of memory"},
      {"--text " + folder.write("text.txt", "abc").string() + " --vocab 200", 1, "at least 257"},
  };
  for (const auto& [arguments, status, message] : cases) {
    const Run result = run(kTiny + "--attention ea-6 --quiet " + arguments);
    CAPTURE(arguments);
    CHECK_MESSAGE(result.status == status, result.output);
    CHECK_MESSAGE(result.output.find(message) != std::string::npos, result.output);
    if (status == 2) CHECK_MESSAGE(count_lines(result.output) == 1, result.output);
  }
}

TEST_CASE("what was measured before a failure is in the JSON file, and a full disk is an error") {
  const TemporaryFolder folder;
  const auto json = folder / "cost.json";
  const std::string sizes =
      "--layers 2 --hidden 32 --heads 4 --intermediate 64 --vocab 300 --steps 1 --no-matmul-floor ";
  const Run result =
      run(sizes + "--attention sa --seq-len 16,4096 --memory-budget 64MiB --json " + json.string());
  CHECK(result.status == 1);
  CHECK_MESSAGE(result.output.find("sa batch 1 length 4096 does not fit: out of memory") != std::string::npos,
                result.output);
  CHECK(json_lines(json).size() == 1);

  const Run full = run(kTiny + "--attention ea-6 --no-matmul-floor --json /dev/full");
  CHECK(full.status == 1);
  CHECK_MESSAGE(full.output.find("No space left on device") != std::string::npos, full.output);
}

TEST_CASE("Ctrl-C prints what was measured so far") {
  const TemporaryFolder folder;
  const auto json = folder / "cost.json";
  const std::string command =
      // In the foreground: otherwise timeout sends the signal twice, to the program and to its group.
      std::string("timeout --foreground --signal=INT 3 ") + ELWISE_TOOLS_DIR + "/train_bert_cost " + kTiny +
      "--no-matmul-floor --attention ea-6,sa --batch 1,2,3,4,5,6,7,8 --steps 2000 --json " + json.string() +
      " >" + (folder / "out.txt").string() + " 2>&1";
  CHECK(std::system(command.c_str()) != 0);
  std::ifstream file(folder / "out.txt");
  const std::string output((std::istreambuf_iterator<char>(file)), {});
  CHECK_MESSAGE(output.find("tokens/s") != std::string::npos, output);
  CHECK(!json_lines(json).empty());
}

}  // namespace elwise::testing
