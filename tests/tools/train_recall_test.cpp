#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>

#include "autograd/grad_mode.h"
#include "core/safetensors.h"
#include "tests/support/figures.h"
#include "tests/support/op_test.h"
#include "tests/support/run_program.h"
#include "tests/support/temporary_folder.h"
#include "tools/experiments/recall_training.h"

// train_recall as a user runs it, and how it scores a model.

namespace elwise::testing {
namespace {

using tools::RecallConfig;
using tools::RecallSplit;
using tools::RecallTask;

const std::string kProgram = std::string(ELWISE_TOOLS_DIR) + "/train_recall ";

Run recall(const std::string& arguments) {
  return run_command(kProgram + arguments);
}

/// A task and a model that take a moment.
const std::string kTiny =
    "--task induction --length 16 --vocab 8 --hidden 16 --intermediate 16 --batch 8 --batches 5 --validation "
    "20 "
    "--test 30 ";

}  // namespace

TEST_CASE("recall_score: the share of most probable answers, and their mean cross entropy") {
  const NoGradGuard inference;
  for (const RecallConfig& task :
       {RecallConfig{.task = RecallTask::mqar, .length = 16, .pairs = 3, .vocabulary = 10},
        RecallConfig{.task = RecallTask::copy, .length = 12, .pairs = 2, .vocabulary = 6}}) {
    models::Decoder model({.vocabulary = task.vocabulary,
                           .hidden = 8,
                           .layers = 1,
                           .heads = 1,
                           .intermediate = 8,
                           .positions = task.length,
                           .initializer_deviation = 1});
    model.eval();
    constexpr int64_t kCount = 13;
    double loss = 0, right = 0;
    for (int64_t index = 0; index < kCount; ++index) {
      const auto example = tools::recall_example(task, RecallSplit::validation, 0, index);
      const std::vector<float> logits =
          model.forward(from_vector(example.tokens, {1, task.length})).to_vector<float>();
      for (size_t i = 0; i < example.targets.size(); ++i) {
        if (example.targets[i] < 0) continue;
        const float* scores = logits.data() + i * static_cast<size_t>(task.vocabulary);
        const float of_answer = scores[example.targets[i]];
        double sum = 0;
        bool most_probable = true;
        for (int64_t token = 0; token < task.vocabulary; ++token) {
          sum += std::exp(double{scores[token]} - double{of_answer});
          most_probable = most_probable && scores[token] <= of_answer;
        }
        loss += std::log(sum);
        right += most_probable ? 1 : 0;
      }
    }
    const double answers = static_cast<double>(kCount * task.pairs);
    for (const int64_t batch : {1, 5, 13, 64}) {
      const tools::RecallScore score = recall_score(model, task, RecallSplit::validation, kCount, batch);
      CHECK(score.accuracy == doctest::Approx(right / answers).epsilon(1e-12));
      CHECK(score.loss == doctest::Approx(loss / answers).epsilon(1e-5));
    }
  }
}

TEST_CASE("softmax attention solves a short induction task; without attention it is a guess") {
  const TemporaryFolder folder;
  const std::string json = folder / "json";
  const Run result = recall(
      "--task induction --length 16 --vocab 8 --hidden 32 --intermediate 32 --batch 32 --batches 50 --epochs "
      "30 "
      "--stop-at 0.99 --attention sa,none --json " +
      json);
  CHECK_MESSAGE(result.status == 0, result.output);
  std::map<std::string, nlohmann::json> results;
  for (const nlohmann::json& line : json_lines(json)) {
    if (line.contains("epochs")) results[line["attention"]] = line;
  }
  REQUIRE(results.size() == 2);
  CHECK(results["sa"]["test_accuracy"] > 0.97);
  CHECK(results["sa"]["epochs"] < 30);  // --stop-at
  const double chance = 1.0 / 7;
  CHECK(results["none"]["chance"] == chance);
  // Five deviations of 2048 guesses.
  CHECK(std::abs(results["none"]["test_accuracy"].get<double>() - chance) < 0.04);
  CHECK(results["none"]["epochs"] == 30);
}

TEST_CASE("every attention, length and number of pairs: a JSON line an epoch and a run, one table") {
  const TemporaryFolder folder;
  const std::string json = folder / "json";
  const Run result = recall(
      "--vocab 12 --hidden 8 --intermediate 8 --heads 2 --batch 4 --batches 2 --epochs 2 --validation 6 "
      "--test 5 "
      "--length 8,16 --pairs 2,3 --attention sa,sa-tiled,ea,ea-2,ea-6,la,aft,none --seeds 0,1 --json " +
      json);
  CHECK_MESSAGE(result.status == 0, result.output);
  CHECK_MESSAGE(contains(result.output, "left out: recall: mqar of 3 pairs needs a length of 12, got 8"),
                result.output);
  auto lines = json_lines(json);
  REQUIRE(lines.size() == 3 * 2 + 3 * 8 * 2 * 3);  // guesses; conditions, attentions, seeds, lines
  CHECK(lines[0]["attention"] == "a guess among all values");
  CHECK(lines[0]["test_accuracy"] == 1.0 / 6);
  CHECK(lines[5]["attention"] == "a guess among the values seen");
  CHECK(lines[5]["pairs"] == 3);
  CHECK(lines[5]["test_accuracy"] == 1.0 / 3);
  lines.erase(lines.begin(), lines.begin() + 6);
  for (size_t i = 0; i < lines.size(); ++i) {
    const bool last = i % 3 == 2;
    std::vector<const char*> fields = {"attention", "length", "pairs", "seed", "seconds"};
    if (last) {
      fields.insert(fields.end(), {"task", "test_accuracy", "test_loss", "chance", "epochs", "vocabulary",
                                   "hidden", "layers", "power", "parameters"});
    } else {
      fields.insert(fields.end(), {"epoch", "training_loss", "validation_loss", "validation_accuracy"});
    }
    for (const char* field : fields) CHECK_MESSAGE(lines[i].contains(field), field);
    if (!last) CHECK(lines[i]["epoch"] == i % 3 + 1);
  }
  const std::string table = result.output.substr(result.output.find("test accuracy for length, pairs"));
  CHECK(count_lines(table) == 1 + 2 + 8);
  for (const char* text : {"8, 2", "16, 2", "16, 3", "sa-tiled", "none", "+-"}) {
    CHECK_MESSAGE(contains(table, text), table);
  }
}

TEST_CASE("Ctrl-C stops the runs, and --resume goes on bit for bit") {
  const TemporaryFolder folder;
  const std::string options = kTiny + "--epochs 8 --attention ea-2,sa --seeds 3,4 --checkpoint ";
  const std::string whole = folder / "whole", pieces = folder / "pieces";
  CHECK(recall(options + whole + " --json " + (folder / "whole.json").string()).status == 0);

  const std::string json = " --json " + (folder / "pieces.json").string();
  const Run stopped =
      signalled_run(kProgram + options + pieces + json, "[ -e " + pieces + "/ea-2-length-16-pairs-1-seed-4 ]",
                    "INT", {pieces, folder / "pieces.json"});
  CHECK_MESSAGE(stopped.status == 130, stopped.output);
  const Run refused = recall(options + pieces + json);
  CHECK_MESSAGE(refused.status == 2, refused.output);
  const Run resumed = recall(options + pieces + json + " --resume --threads 2");
  CHECK_MESSAGE(resumed.status == 0, resumed.output);
  CHECK(lines_without_times(folder / "pieces.json") == lines_without_times(folder / "whole.json"));
  for (const char* run : {"ea-2-length-16-pairs-1-seed-3", "sa-length-16-pairs-1-seed-4"}) {
    const auto file = std::filesystem::path(run) / "finished.safetensors";
    const auto expected = load_safetensors(whole / file), got = load_safetensors(pieces / file);
    REQUIRE(got.size() == expected.size());
    for (const auto& [name, tensor] : expected) {
      CHECK_MESSAGE(values_of(got.at(name)) == values_of(tensor), name);
    }
  }
}

TEST_CASE("train_recall --plot draws the accuracies") {
  if (!can_draw()) return;
  const TemporaryFolder folder;
  const std::string figures = folder / "figures";
  const Run result = recall(
      "--vocab 12 --hidden 8 --intermediate 8 --batch 4 --batches 1 --epochs 1 --validation 6 --test 5 "
      "--length 8,16 --pairs 1,2 --attention sa,ea-6 --quiet --plot " +
      figures);
  CHECK_MESSAGE(result.status == 0, result.output);
  check_figure(figures, "recall",
               {"Multi-query associative recall", "length 8", "length 16", "pairs", "sa", "ea-6",
                "a guess among all values", "a guess among the values seen"});
  CHECK(std::filesystem::exists(folder / "figures" / "results.json"));
  // Against the length where that alone varies, all tasks in one figure, and every kind of bad file.
  const std::string script = "python3 " ELWISE_SOURCE_DIR "/tools/plot_recall.py ";
  const std::string good =
      R"({"attention":"sa","task":"copy","length":8,"pairs":1,"seed":0,"chance":0.5,"test_accuracy":1})";
  const auto lengths = folder.write(
      "lengths.json",
      good + "\n" +
          R"({"attention":"sa","task":"copy","length":16,"pairs":1,"seed":0,"chance":0.5,"test_accuracy":0.5})");
  const std::string out = " --out " + (folder / "lengths").string();
  CHECK(run_command(script + lengths.string() + out).status == 0);
  check_figure(folder / "lengths", "recall", {"Selective copying", "sequence length (tokens)"});
  const std::string tasks =
      " " + lengths.string() + " " + (folder / "figures" / "results.json").string() + " --out ";
  CHECK(run_command(script + tasks + (folder / "tasks").string()).status == 0);
  check_figure(folder / "tasks", "recall", {"Selective copying", "Multi-query associative recall"});
  const std::pair<std::string, std::string> cases[] = {
      {good + "\n{", "bad.json:2: not JSON"},
      {"[]", "bad.json:1: expected a JSON object"},
      {good + "\n" + good.substr(0, good.size() - 2) + "0}",
       "two results of copy, sa, length 8, pairs 1, seed 0: draw runs with other settings by themselves"},
      {"{}", "nothing to draw"},
      {R"({"test_accuracy":1,"seed":0,"attention":7})", "bad.json:1: unexpected attention: 7"},
  };
  for (const auto& [text, message] : cases) {
    const Run run = run_command(script + folder.write("bad.json", text).string() + out);
    CHECK_MESSAGE(run.status == 1, run.output);
    CHECK_MESSAGE(contains(run.output, message), run.output);
    CHECK_MESSAGE(count_lines(run.output) == 1, run.output);
  }
}

TEST_CASE("bad usage of train_recall is one line, and exit 2") {
  const TemporaryFolder folder;
  const std::tuple<std::string, int, std::string> cases[] = {
      {"--task sort", 2, "--task"},
      {"--attention ea-3", 2, "order 3, expected an even one"},
      {"--attention sa,sa", 2, "attention: expected each value once"},
      {"--length 0", 2, "--length"},
      {"--length 64,64", 2, "length: expected each value once"},
      {"--pairs 2,2", 2, "pairs: expected each value once"},
      {"--quiet --length 8 --pairs 3", 2, "mqar of 3 pairs needs a length of 12, got 8"},
      {"--quiet --pairs 4 --vocab 8", 2, "mqar of 4 pairs needs a vocabulary of 10, got 8"},
      {"--quiet --task induction --pairs 2", 2, "induction asks one question: expected 1 pair, got 2"},
      {"--quiet --power 2", 2, "expected a power in -1 .. 1, got 2"},
      {"--hidden 33 --heads 2", 2, "33 is not divisible by 2 heads"},
      {"--stop-at 2", 2, "--stop-at"},
      {"--device meta", 2, "nothing is trained on meta"},
      {"--resume", 2, "resume: expected --checkpoint beside it"},
      {kTiny + "--json " + (folder / "no/such/folder.json").string(), 1, "cannot write"},
  };
  for (const auto& [arguments, status, message] : cases) {
    const Run result = recall(arguments);
    CAPTURE(arguments);
    CHECK_MESSAGE(result.status == status, result.output);
    CHECK_MESSAGE(contains(result.output, message), result.output);
    CHECK_MESSAGE(count_lines(result.output) == 1, result.output);
  }
}

}  // namespace elwise::testing
