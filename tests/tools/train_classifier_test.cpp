#include <doctest/doctest.h>

#include <cmath>
#include <filesystem>
#include <string>

#include "core/file.h"
#include "tests/support/figures.h"

// train_classifier as a user runs it.

namespace elwise::testing {
namespace {

const std::string kProgram = std::string(ELWISE_TOOLS_DIR) + "/train_classifier ";

Run train(const std::string& arguments) {
  return run_command(kProgram + arguments);
}

/// A model that learns in a moment.
const std::string kTiny =
    "--layers 1 --hidden 16 --heads 2 --intermediate 16 --batch 8 --learning-rate 0.01 ";

/// Waves of one of three frequencies around one of three levels, 6 to 11 values long, in two dimensions.
std::string waves(int count, int seed) {
  std::string text =
      "@problemName Waves\n@timeStamps false\n@missing false\n@univariate false\n@dimensions 2\n@equalLength "
      "false\n@classLabel true slow middle fast\n@data\n";
  const char* labels[] = {"slow", "middle", "fast"};
  for (int i = 0; i < count; ++i) {
    const int label = i % 3, length = 6 + (i * 7 + seed) % 6;
    for (int dimension = 0; dimension < 2; ++dimension) {
      for (int j = 0; j < length; ++j) {
        const double phase = 0.3 * ((i * 13 + seed * 5) % 21);
        text += std::to_string(1.5 * label + std::sin((0.4 + 0.8 * label) * j + phase + dimension)) +
                (j + 1 < length ? "," : ":");
      }
    }
    text += std::string(labels[label]) + "\n";
  }
  return text;
}

struct Files {
  TemporaryFolder folder;
  std::string data = "--train " + folder.write("train.ts", waves(90, 1)).string() + " --test " +
                     folder.write("test.ts", waves(45, 2)).string() + " ";
  std::string at(const std::string& name) const { return (folder / name).string(); }
};

}  // namespace

TEST_CASE("train_classifier learns, with every embedding and pooling, and says how well") {
  const Files files;
  for (const std::string options : {"--embedding conv --pooling flatten", "--embedding linear --pooling mean",
                                    "--embedding conv --pooling mean --normalize split --validation test"}) {
    CAPTURE(options);
    const std::string json = files.at("json");
    const Run run =
        train(files.data + kTiny + options + " --epochs 12 --seeds 0,1 --attention ea-6,none --json " + json);
    CHECK_MESSAGE(run.status == 0, run.output);
    const bool on_test = contains(options, "test");
    CHECK(contains(run.output, "The epoch is chosen on the test set") == on_test);
    CHECK(contains(run.output, "18 of the training series choose the epoch") == !on_test);
    CHECK_MESSAGE(contains(run.output, " +- "), run.output);
    CHECK(contains(run.output, on_test ? "test accuracy (best epoch)" : "test accuracy"));
    int finished = 0;
    for (const nlohmann::json& line : json_lines(json)) {
      if (line.contains("epoch")) {
        for (const char* field :
             {"attention", "seed", "training_loss", "validation_accuracy", "validation_loss", "learning_rate",
              "training_seconds", "seconds", "best"}) {
          CHECK_MESSAGE(line.contains(field), field);
        }
        continue;
      }
      ++finished;
      CHECK(line["test_accuracy"].get<double>() > 0.8);  // chance: 1/3
      CHECK(line["epochs"].get<int>() <= 12);
      CHECK(line["best_epoch"].get<int>() >= 1);
      for (const char* field : {"attention", "seed", "seconds", "test_loss", "validation", "pooling",
                                "hidden", "optimizer", "problem", "threads", "parameters"}) {
        CHECK_MESSAGE(line.contains(field), field);
      }
      CHECK(line["labels"].size() == 3);
      double counted = 0, right = 0;
      for (size_t i = 0; i < 3; ++i) {
        for (const nlohmann::json& cell : line["confusion"][i]) counted += cell.get<double>();
        right += line["confusion"][i][i].get<double>();
      }
      CHECK(counted == 45);
      CHECK(right / counted == doctest::Approx(line["test_accuracy"].get<double>()));
    }
    CHECK(finished == 4);
  }
}

TEST_CASE(
    "train_classifier: a run killed or interrupted at some moment goes on bit for bit, whatever the "
    "threads") {
  const Files files;
  const std::string options =
      files.data + kTiny + "--attention ea-2 --epochs 15 --patience 15 --seeds 5,6 --threads 1 ";
  REQUIRE(train(options + "--json " + files.at("whole")).status == 0);
  const auto whole = lines_without_times(files.at("whole"));
  CHECK(whole.size() == 32);
  const std::pair<int, std::string> kills[] = {
      {0, "KILL"}, {1, "KILL"}, {13, "KILL"}, {21, "KILL"}, {6, "INT"}};
  for (const auto& [after, signal] : kills) {  // epochs told before
    CAPTURE(after);
    const std::string name = "pieces" + std::to_string(after);
    const std::string json = files.at(name + ".json"), out = files.at("out");
    const std::string saved = options + "--checkpoint " + files.at(name) + " --json " + json;
    const Run killed = signalled_run(kProgram + saved + " >" + out,
                                     "[ $(grep -c epoch " + out + ") -gt " + std::to_string(after) + " ]",
                                     signal, {files.at(name), json, out});
    CHECK_MESSAGE(killed.status == (signal == "KILL" ? 128 + 9 : 130), killed.output);
    const Run resumed = train(saved + " --resume --threads 2");
    CHECK_MESSAGE(resumed.status == 0, resumed.output);
    CHECK(lines_without_times(json) == whole);
  }
}

TEST_CASE("train_classifier: a damaged checkpoint is an error, not another result") {
  const Files files;
  const std::string options =
      files.data + kTiny + "--attention ea-2 --epochs 3 --quiet --checkpoint " + files.at("run") + " ";
  REQUIRE(train(options).status == 0);
  const std::filesystem::path file =
      std::filesystem::path(files.at("run")) / "ea-2-seed-0" / "finished.safetensors";
  const std::string good = read_file(file);
  std::string flipped = good;
  flipped[flipped.size() - 100] ^= 4;
  for (const std::string& bad :
       {good.substr(0, good.size() - 1), good.substr(0, 5), std::string(), flipped}) {
    write_file_atomically(file, bad);
    const Run run = train(options + "--resume");
    CHECK_MESSAGE(run.status == 1, run.output);
    CHECK_MESSAGE(contains(run.output, "finished.safetensors"), run.output);
    CHECK(count_lines(run.output) == 1);
  }
  write_file_atomically(file, good);
  CHECK(train(options + "--resume").status == 0);
}

TEST_CASE("train_classifier: bad input is one line, exit 2 for usage and 1 for a failure") {
  const Files files;
  const std::string tiny = kTiny + "--attention ea-2 --epochs 1 --quiet ";
  REQUIRE(train(files.data + tiny + "--checkpoint " + files.at("run")).status == 0);
  const std::string broken = "--train " +
                             files.folder.write("broken.ts", waves(9, 1) + "1,2:3,x:slow\n").string() +
                             " --test " + files.at("test.ts") + " ";
  const std::string few = "--train " + files.folder.write("few.ts", waves(1, 1)).string() + " --test " +
                          files.at("test.ts") + " ";
  const std::tuple<std::string, int, std::string> cases[] = {
      {tiny, 2, "is required"},
      {files.data + tiny + "--attention ea-3", 2, "order 3, expected an even one"},
      {files.data + tiny + "--attention sa,ea-6,sa", 2, "attention: expected each value once"},
      {files.data + tiny + "--seeds 1,1", 2, "seeds: expected each value once"},
      {files.data + tiny + "--seeds -1", 2, "seeds"},
      {files.data + tiny + "--hidden 33", 2, "33 is not divisible by 2 heads"},
      {files.data + tiny + "--pooling max", 2, "--pooling"},
      {files.data + tiny + "--validation none", 2, "--validation"},
      {files.data + tiny + "--epochs 0", 2, "--epochs: expected a number above 0"},
      {files.data + tiny + "--clip -1", 2, "--clip: expected a number from 0 on, got '-1'"},
      {files.data + tiny + "--clip nan", 2, "--clip: expected a number from 0 on, got 'nan'"},
      {files.data + tiny + "--learning-rate inf", 2, "--learning-rate: expected a number above 0, got inf"},
      {files.data + tiny + "--seeds ''", 2, "--seeds: expected a number from 0 on, got ''"},
      {files.data + tiny + "--plot " + files.at("train.ts"), 1, "plot: cannot create"},
      {files.data + tiny + "--projection-scale 0", 2, "--projection-scale"},
      {files.data + tiny + "--device meta", 2, "nothing is trained on meta"},
      {files.data + tiny + "--resume", 2, "resume: expected --checkpoint beside it"},
      {files.data + tiny + "--checkpoint " + files.at("run"), 2, "expected --resume or another folder"},
      {files.data + tiny + "--hidden 32 --resume --checkpoint " + files.at("run"), 1,
       "is of a run with hidden 16, the options give 32"},
      {broken + tiny, 1, "broken.ts:18: expected a number or ?, got 'x' in dimension 2"},
      {few + tiny, 1, "expected more series than the 1 to hold out, got 1"},
      {"--train " + files.at("none.ts") + " --test " + files.at("test.ts") + " " + tiny, 1, "none.ts"},
      {files.data + tiny + "--json " + files.at("no/such/folder.json"), 1, "cannot write"},
  };
  for (const auto& [arguments, status, message] : cases) {
    const Run result = train(arguments);
    CAPTURE(arguments);
    CHECK_MESSAGE(result.status == status, result.output);
    CHECK_MESSAGE(contains(result.output, message), result.output);
    CHECK_MESSAGE(count_lines(result.output) == 1, result.output);
  }
}

TEST_CASE("train_classifier --plot draws learning curves and confusion matrices") {
  if (!can_draw()) return;
  const Files files;
  const std::string figures = files.at("figures");
  const Run run = train(files.data + kTiny + "--epochs 3 --attention sa,none --seeds 0,1 --plot " + figures);
  CHECK_MESSAGE(run.status == 0, run.output);
  check_figure(figures, "learning-curves",
               {"training loss", "validation accuracy", "sa (2 runs)", "none (2 runs)"});
  check_figure(figures, "confusion-sa", {"predicted", "true", "slow", "fast"});
  check_figure(figures, "confusion-none", {"predicted"});
  CHECK(json_lines(std::filesystem::path(figures) / "results.json").size() == 16);
  const std::string script = "python3 " ELWISE_SOURCE_DIR "/tools/plot_experiment.py ";
  const std::tuple<std::string, std::string> cases[] = {
      {"{}", "bad.json:1: expected attention to be a string, got null"},
      {R"({"attention":"sa","epoch":"one"})", "bad.json:1: expected epoch to be a number, got \"one\""},
      {R"({"attention":"sa","labels":["a","b"],"confusion":[[1,2]]})",
       "bad.json:1: expected confusion to be a square"},
      {R"({"attention":"sa"})", "nothing to draw in"},
  };
  for (const auto& [text, message] : cases) {
    const Run bad =
        run_command(script + files.folder.write("bad.json", text).string() + " --out " + files.at("out"));
    CHECK(bad.status == 1);
    CHECK_MESSAGE(contains(bad.output, message), bad.output);
    CHECK_MESSAGE(count_lines(bad.output) == 1, bad.output);
  }
}

}  // namespace elwise::testing
