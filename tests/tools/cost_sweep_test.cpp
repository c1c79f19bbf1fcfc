#include <doctest/doctest.h>

#include <set>
#include <string>

#include "tests/support/figures.h"
#include "tests/support/run_program.h"
#include "tests/support/temporary_folder.h"

// train_bert_cost --sweep and --plot, and plot_cost.py, as a user runs them.

namespace elwise::testing {
namespace {

const std::string kProgram = std::string(ELWISE_TOOLS_DIR) + "/train_bert_cost ";
const std::string kTiny = "--layers 2 --hidden 32 --heads 4 --intermediate 64 --vocab 300 ";

}  // namespace

TEST_CASE("--sweep memory goes over lengths on meta") {
  const TemporaryFolder folder;
  const auto json = folder / "memory.json";
  Run run = run_command(kProgram + kTiny + "--sweep memory --json " + json.string());
  CHECK_MESSAGE(run.status == 0, run.output);
  auto lines = json_lines(json);
  CHECK(lines.size() == 8 * 4);
  for (const auto& line : lines) {
    CHECK(line["sweep"] == "memory");
    CHECK(line["device"] == "meta");
    CHECK(line["step_ms"].is_null());
    CHECK(line["peak_bytes"].get<int64_t>() > line["parameter_bytes"].get<int64_t>());
  }
  CHECK(lines.back()["seq_len"] == 16384);

  const int64_t predicted = lines[0]["peak_bytes"];
  run = run_command(kProgram + kTiny + "--sweep memory --device cpu --attention ea-2 --seq-len 128 --json " +
                    json.string());
  CHECK_MESSAGE(run.status == 0, run.output);
  lines = json_lines(json);
  REQUIRE(lines.size() == 1);
  CHECK(lines[0]["device"] == "cpu");
  CHECK(lines[0]["step_ms"].get<double>() > 0);
  CHECK(lines[0]["peak_bytes"] == predicted);
}

TEST_CASE("--sweep throughput runs on the CPU, full EA on short sequences only unless asked for") {
  const TemporaryFolder folder;
  const auto json = folder / "throughput.json";
  const Run run = run_command(kProgram + kTiny + "--sweep throughput --steps 1 --json " + json.string());
  CHECK_MESSAGE(run.status == 0, run.output);
  std::map<std::string, std::set<int64_t>> lengths;
  for (const auto& line : json_lines(json)) {
    CHECK(line["sweep"] == "throughput");
    CHECK(line["tokens_per_s"].get<double>() > 0);
    lengths[line["attention"]].insert(line["seq_len"].get<int64_t>());
  }
  CHECK(lengths["ea"] == std::set<int64_t>{128, 256, 512});
  for (const char* name : {"sa", "ea-2", "ea-6"}) {
    CHECK(lengths[name] == std::set<int64_t>{128, 256, 512, 1024, 2048});
  }
}

TEST_CASE("--sweep bs-l predicts on meta, and runs the cheapest points on the CPU") {
  const TemporaryFolder folder;
  const auto json = folder / "bs-l.json";
  const std::string sweep = kProgram + kTiny + "--attention ea-6,sa --sweep bs-l --json " + json.string();
  Run run = run_command(sweep + " --memory-budget 1GiB");
  CHECK_MESSAGE(run.status == 0, run.output);
  auto lines = json_lines(json);
  REQUIRE(lines.size() == 9 * 2);
  for (const auto& line : lines) {
    CHECK(line["sweep"] == "bs-l");
    CHECK(line["device"] == "meta");
    CHECK(line["memory_budget"] == 1 << 30);
    CHECK(line["max_seq_len"] == line["seq_len"]);
    CHECK(line["tokens"] == line["batch"].get<int64_t>() * line["seq_len"].get<int64_t>());
    CHECK(line["peak_bytes"].get<int64_t>() <= 1 << 30);
  }
  CHECK(lines.back()["batch"] == 256);

  run = run_command(sweep + " --memory-budget 40MiB --device cpu --batch 2,4,2000 --confirm 2");
  CHECK_MESSAGE(run.status == 0, run.output);
  lines = json_lines(json);
  REQUIRE(lines.size() == 6 + 4);
  CHECK(lines[5]["max_seq_len"] == 0);  // a batch of 2000 needs more
  CHECK(lines[5]["peak_bytes"].is_null());
  for (size_t i = 6; i < lines.size(); ++i) {
    CHECK(lines[i]["device"] == "cpu");
    CHECK(lines[i]["peak_bytes"] == lines[i]["predicted_peak_bytes"]);
    CHECK(lines[i]["beyond_seq_len"] == lines[i]["seq_len"].get<int64_t>() + 8);
    CHECK(lines[i]["beyond_fits"] == false);
    CHECK(lines[i]["step_ms"].get<double>() > 0);
  }
  CHECK_MESSAGE(run.output.find("predicted peak") != std::string::npos, run.output);
}

TEST_CASE("sweeps: wrong flags are one line and exit 2") {
  const std::pair<std::string, std::string> cases[] = {
      {"--sweep speed", "--sweep"},
      {"--sweep throughput --device meta", "expected --device cpu"},
      {"--sweep bs-l --seq-len 128", "expected no --seq-len"},
      {"--sweep bs-l --device cpu", "need all of --memory-budget"},
      {"--sweep bs-l --threads 1,2", "expected one number of them"},
      {"--sweep bs-l --confirm 1", "expected --sweep bs-l --device cpu"},
      {"--confirm 1", "expected --sweep bs-l --device cpu"},
      {"--sweep bs-l --device cpu --memory-budget 1GiB --confirm 0", "--confirm"},
      {"--sweep bs-l --memory-budget much", "'much' is not a size"},
  };
  for (const auto& [arguments, message] : cases) {
    const Run run = run_command(kProgram + kTiny + arguments);
    CAPTURE(arguments);
    CHECK_MESSAGE(run.status == 2, run.output);
    CHECK_MESSAGE(run.output.find(message) != std::string::npos, run.output);
    CHECK_MESSAGE(count_lines(run.output) == 1, run.output);
  }
}

TEST_CASE("Ctrl-C in a confirmation prints what was found") {
  const TemporaryFolder folder;
  const auto json = folder / "bs-l.json";
  const Run run =
      run_command("timeout --foreground --preserve-status --signal=INT 3 " + kProgram + kTiny +
                  "--attention ea-6 --sweep bs-l --device cpu --memory-budget 64MiB --batch 4,8 --steps "
                  "100000 --json " +
                  json.string());
  CHECK_MESSAGE(run.output.find("batch") != std::string::npos, run.output);
  CHECK(run.status == 130);
  CHECK(json_lines(json).size() == 2);
}

TEST_CASE("--plot draws a figure for each sweep and keeps the measurements") {
  if (!can_draw()) return;
  const TemporaryFolder folder;
  const auto figures = folder / "figures" / "new";
  const std::string program = kProgram + kTiny + "--quiet --plot " + figures.string() + " --sweep ";
  for (const std::string sweep :
       {"memory", "bs-l --memory-budget 64MiB", "throughput --steps 1 --seq-len 16,32"}) {
    const Run run = run_command(program + sweep);
    CHECK_MESSAGE(run.status == 0, run.output);
  }
  for (const char* sweep : {"memory", "bs-l", "throughput"}) {
    CHECK(!json_lines(figures / (sweep + std::string(".json"))).empty());
  }
  check_figure(figures, "memory",
               {"Peak memory of a training step", "sequence length (tokens)", "ea-6", "sa", "16k"});
  check_figure(figures, "bs-l", {"batch size (sequences)", "longest sequence (tokens)", "ea-2", "8k tokens"});
  check_figure(figures, "throughput", {"tokens per second", "ea-6", "ea "});
}

TEST_CASE("plot_cost.py reads files without sweeps, and several of them") {
  if (!can_draw()) return;
  const TemporaryFolder folder;
  std::string old_lines;
  for (const char* length : {"128", "512"}) {
    for (const char* attention : {"sa", "ea-6", "la"}) {
      old_lines +=
          std::string(R"({"attention":")") + attention +
          R"(","device":"cpu","dtype":"f32","batch":1,"tokens_per_s":300.5,"peak_bytes":2000000,"seq_len":)" +
          length + "}\n";
    }
  }
  const auto old_file = folder.write("old.json", old_lines), json = folder / "bs-l.json";
  CHECK(run_command(kProgram + kTiny + "--sweep bs-l --memory-budget 64MiB --json " + json.string()).status ==
        0);
  const Run run =
      run_command(kPlotScript + old_file.string() + " " + json.string() + " --out " + folder.path().string());
  CHECK_MESSAGE(run.status == 0, run.output);
  CHECK(count_lines(run.output) == 6);
  for (const char* name : {"memory", "bs-l", "throughput"}) check_figure(folder.path(), name, {"sa"});
}

TEST_CASE("plot_cost.py: errors are one line that names the file and the line") {
  const TemporaryFolder folder;
  const std::string good =
      R"({"attention":"sa","device":"meta","dtype":"f32","batch":1,"seq_len":8,"peak_bytes":1})";
  const std::string no_peak = R"({"attention":"sa","device":"meta","dtype":"f32","batch":1,"seq_len":8})";
  const std::tuple<std::string, std::string> cases[] = {
      {good + "\n{\"attention\"", "bad.json:2: not JSON"},
      {good + "\n\n[1]", "bad.json:3: expected a JSON object"},
      {R"({"attention":"sa"})", "bad.json:1: expected device to be str, got null"},
      {R"({"attention":"sa","device":"cpu","dtype":"f32","batch":1})",
       "expected seq_len, length or position to be int, got []"},
      {good.substr(0, good.size() - 1) + R"(,"sweep":"speed"})",
       "expected sweep to be memory, bs-l or throughput"},
      {good.substr(0, good.size() - 2) + "\"many\"}", "expected peak_bytes to be a number, got \"many\""},
      {"", "nothing to draw"},
      {no_peak, "nothing to draw"},
  };
  for (const auto& [text, message] : cases) {
    const auto bad = folder.write("bad.json", text);
    const Run run = run_command(kPlotScript + bad.string() + " --out " + (folder / "out").string());
    CAPTURE(text);
    CHECK_MESSAGE(run.status == 1, run.output);
    CHECK_MESSAGE(run.output.find(message) != std::string::npos, run.output);
    CHECK_MESSAGE(count_lines(run.output) == 1, run.output);
    CHECK_FALSE(std::filesystem::exists(folder / "out"));
  }
  const Run missing =
      run_command(kPlotScript + (folder / "none.json").string() + " --out " + folder.path().string());
  CHECK(missing.status == 1);
  CHECK_MESSAGE(missing.output.find("none.json: No such file") != std::string::npos, missing.output);
  CHECK(run_command(kPlotScript + "bad.json").status == 2);
}

TEST_CASE("without Python --plot names the package and keeps the measurements") {
  const TemporaryFolder folder;
  const Run run = run_command("PATH=" + (folder / "nothing").string() + " " + kProgram + kTiny +
                              "--quiet --sweep memory --seq-len 16 --plot " + (folder / "figures").string());
  CHECK(run.status == 1);
  CHECK_MESSAGE(run.output.find("apt-get install python3-matplotlib") != std::string::npos, run.output);
  CHECK_MESSAGE(run.output.find("figures/memory.json") != std::string::npos, run.output);
  CHECK(json_lines(folder / "figures" / "memory.json").size() == 4);
}

}  // namespace elwise::testing
