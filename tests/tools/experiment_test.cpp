#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "nn/linear.h"
#include "ops/dropout.h"
#include "ops/elementwise.h"
#include "ops/loss.h"
#include "tests/support/run_program.h"
#include "tests/support/temporary_folder.h"
#include "tools/experiments/experiment.h"
#include "tools/experiments/random_order.h"
#include "tools/experiments/summary.h"

namespace elwise::tools {
namespace {

using nlohmann::ordered_json;
using testing::json_lines;

/// What the process does in the middle of training, by the number of the step over all runs.
struct Killed {};
int64_t killed_at = -1;
int64_t step_count = 0;

/// A linear layer with dropout that learns y = 2 x; its validation scores are given.
class LineTrial : public Trial {
 public:
  LineTrial(const TrialId& id, std::vector<double> scores) : id_(id), scores_(std::move(scores)) {}

  nn::Module& model() override { return layer_; }
  int64_t begin_epoch(int64_t epoch) override {
    order_ = random_order(4, id_.seed, static_cast<uint64_t>(epoch));
    return 4;
  }
  Tensor loss(int64_t batch) override {
    if (step_count++ == killed_at) throw Killed();
    const double x = static_cast<double>(order_[static_cast<size_t>(batch)] + 1);
    if (id_.attention == "none" && x == 3)
      return mul(sum_of_weight(), std::numeric_limits<double>::quiet_NaN());
    return mse_loss(layer_.forward(dropout(full({1, 2}, x), 0.5)), full({1, 1}, 2 * x));
  }
  Validation validate(int64_t epoch) override {
    return {.score = scores_[static_cast<size_t>(epoch)], .fields = {{"weight", weight()}}};
  }
  ordered_json test() override { return {{"test_weight", weight()}}; }
  int64_t test_examples() const override { return 0; }
  std::vector<QueriesAndKeys> queries_and_keys(int64_t) const override { return {}; }

 private:
  Tensor sum_of_weight() const { return mse_loss(layer_.weight(), zeros_like(layer_.weight())); }
  double weight() const { return layer_.weight().to_vector<float>()[0]; }

  TrialId id_;
  std::vector<double> scores_;
  nn::Linear layer_{2, 1};
  std::vector<int64_t> order_;
};

Experiment line_experiment(const std::vector<double>& scores) {
  Experiment experiment;
  experiment.settings = {{"task", "line"}};
  experiment.metrics = {{"test_weight", "weight"}};
  experiment.make = [scores](const TrialId& id) { return std::make_unique<LineTrial>(id, scores); };
  return experiment;
}

ExperimentOptions quiet_options(const TemporaryFolder& folder, const std::string& json) {
  ExperimentOptions options;
  options.attentions = {"ea-2"};
  options.training.epochs = 9;
  options.training.patience = 2;
  options.training.schedule = "cosine";
  options.json = folder / json;
  options.quiet = true;
  return options;
}

/// Lines without what differs from run to run: times.
std::vector<nlohmann::json> lines_of(const std::filesystem::path& path) {
  auto lines = json_lines(path);
  for (nlohmann::json& line : lines) {
    for (const char* field : {"seconds", "training_seconds", "training_seconds_per_epoch"}) line.erase(field);
  }
  return lines;
}

const std::vector<double> kScores = {0.1, 0.3, 0.3, 0.2, 0.5, 0.5, 0.4, 0.9, 0.9};

}  // namespace

TEST_CASE("random_order: a permutation, another for each seed and stream") {
  for (const int64_t count : {0, 1, 2, 33, 1000}) {
    std::vector<int64_t> order = random_order(count, 7, 3), sorted(static_cast<size_t>(count));
    CHECK(order == random_order(count, 7, 3));
    if (count > 2) CHECK(order != random_order(count, 7, 4));
    if (count > 2) CHECK(order != random_order(count, 8, 3));
    std::iota(sorted.begin(), sorted.end(), 0);
    std::sort(order.begin(), order.end());
    CHECK(order == sorted);
  }
  // Each of three things comes first about as often.
  std::vector<int> first(3);
  for (uint64_t stream = 0; stream < 3000; ++stream) {
    ++first[static_cast<size_t>(random_order(3, 0, stream)[0])];
  }
  for (const int count : first) CHECK(std::abs(count - 1000) < 130);  // five deviations
}

TEST_CASE(
    "a run ends after `patience` epochs without a better score, and is tested with its best parameters") {
  const TemporaryFolder folder;
  const ExperimentOptions options = quiet_options(folder, "json");
  CHECK(run_experiment(options, line_experiment(kScores)) == kExitOk);
  const auto lines = lines_of(folder / "json");
  REQUIRE(lines.size() == 5);  // the best is epoch 2: an equal score is not better
  for (size_t i = 0; i < 4; ++i) CHECK(lines[i]["epoch"] == i + 1);
  CHECK(lines[1]["best"] == true);
  CHECK(lines[2]["best"] == false);
  CHECK(lines[4]["epochs"] == 4);
  CHECK(lines[4]["best_epoch"] == 2);
  CHECK(lines[4]["test_weight"] == lines[1]["weight"]);
  CHECK(lines[4]["test_weight"] != lines[3]["weight"]);
  CHECK(lines[4]["task"] == "line");
  CHECK(lines[4]["diverged_in_epoch"].is_null());
  // cosine over 9 epochs of 4 steps
  CHECK(lines[0]["learning_rate"].get<double>() ==
        doctest::Approx(1e-3 * 0.5 * (1 + std::cos(M_PI * 3.5 / 36))));
}

TEST_CASE("a run that was killed at any step goes on from its last whole epoch bit for bit") {
  const TemporaryFolder folder;
  ExperimentOptions options = quiet_options(folder, "whole");
  options.seeds = {3, 4};
  const Experiment experiment = line_experiment(kScores);
  run_experiment(options, experiment);
  const auto whole = lines_of(folder / "whole");
  REQUIRE(whole.size() == 10);
  for (int64_t kill : {0, 3, 4, 5, 11, 15, 16, 18, 31}) {
    CAPTURE(kill);
    options.json = folder / "pieces";
    options.checkpoint = folder / ("run" + std::to_string(kill));
    options.resume = false;
    step_count = 0;
    killed_at = kill;
    CHECK_THROWS_AS(run_experiment(options, experiment), Killed);
    killed_at = -1;
    options.resume = true;
    CHECK(run_experiment(options, experiment) == kExitOk);
    CHECK(lines_of(folder / "pieces") == whole);
    step_count = 0;  // all is done: nothing is trained, everything is told
    CHECK(run_experiment(options, experiment) == kExitOk);
    CHECK(step_count == 0);
    CHECK(lines_of(folder / "pieces") == whole);
  }
  options.resume = false;
  CHECK_THROWS_AS(run_experiment(options, experiment), UsageError);
  options.resume = true;
  options.training.learning_rate = 1e-2;
  CHECK_THROWS_WITH_AS(run_experiment(options, experiment),
                       doctest::Contains("is of a run with learning_rate 0.001, the options give 0.01"),
                       Error);
}

TEST_CASE("a run that was stopped goes on with more epochs where they do not change the learning rate") {
  const TemporaryFolder folder;
  ExperimentOptions options = quiet_options(folder, "whole");
  options.training.patience = 9;
  options.training.schedule = "constant";
  const Experiment experiment = line_experiment(kScores);
  run_experiment(options, experiment);
  const auto stop_at = [&](int64_t step, const char* name) {
    options.checkpoint = folder / name;
    options.json = folder / "pieces";
    options.resume = false;
    options.training.epochs = 5;
    step_count = 0;
    killed_at = step;
    if (step >= 0) CHECK_THROWS_AS(run_experiment(options, experiment), Killed);
    if (step < 0) CHECK(run_experiment(options, experiment) == kExitOk);
    killed_at = -1;
    options.resume = true;
    options.training.epochs = 9;
  };
  stop_at(11, "constant");
  CHECK(run_experiment(options, experiment) == kExitOk);
  CHECK(lines_of(folder / "pieces") == lines_of(folder / "whole"));
  const auto refused = [&](const std::string& message) {
    CHECK_THROWS_WITH_AS(run_experiment(options, experiment), doctest::Contains(message.c_str()), Error);
  };
  options.training.epochs = 4;
  refused("is of a run with max_epochs 9, the options give 4");
  stop_at(-1, "finished");
  refused("is finished after its 5 epochs and kept its best parameters alone: for 9 begin in another folder");
  options.training.warmup = 0.1;
  stop_at(11, "warmup");
  refused("is of a run with max_epochs 5, the options give 9");
}

TEST_CASE("--clip bounds the gradients' norm, and 0 leaves them as they are") {
  const TemporaryFolder folder;
  ExperimentOptions options = quiet_options(folder, "json");
  std::vector<double> weights;
  for (const double clip : {0.0, 1e30, 1e-12}) {
    options.training.clip = clip;
    CHECK(run_experiment(options, line_experiment(kScores)) == kExitOk);
    weights.push_back(json_lines(folder / "json").back()["test_weight"]);
  }
  CHECK(weights[0] == weights[1]);
  CHECK(weights[0] != weights[2]);
}

TEST_CASE("a run whose loss is not finite ends there, says so, and the next one begins") {
  const TemporaryFolder folder;
  ExperimentOptions options = quiet_options(folder, "json");
  options.attentions = {"none", "ea-2"};
  CHECK(run_experiment(options, line_experiment(kScores)) == kExitOk);
  const auto lines = lines_of(folder / "json");
  REQUIRE(lines.size() == 6);
  CHECK(lines[0]["attention"] == "none");
  CHECK(lines[0]["diverged_in_epoch"] == 1);
  CHECK(lines[0]["epochs"] == 0);
  CHECK(lines[5]["attention"] == "ea-2");
  CHECK(lines[5]["diverged_in_epoch"].is_null());
}

TEST_CASE("the table: conditions, baselines, mean and standard deviation over seeds") {
  CHECK(mean_and_deviation({}, 2) == "-");
  CHECK(mean_and_deviation({0.5}, 3) == "0.500");
  CHECK(mean_and_deviation({1, 2, 3, 4}, 2) == "2.50 +- 1.29");
  Experiment experiment;
  experiment.conditions = {{{"length", 64}}, {{"length", 128}}};
  experiment.metrics = {{"accuracy", "accuracy", 2}, {"error", "error", 1}};
  const auto line = [](int length, const char* attention, double accuracy) {
    return ordered_json{{"attention", attention}, {"length", length}, {"accuracy", accuracy}, {"epochs", 2}};
  };
  const std::vector<ordered_json> results = {{{"attention", "chance"}, {"length", 128}, {"error", 7}},
                                             line(64, "sa", 0.5),
                                             line(128, "sa", 0.75),
                                             line(64, "sa", 0.7),
                                             line(64, "none", 0.1)};
  CHECK(summary_table(experiment, results) ==
        "attention  length  runs      accuracy  error      epochs  s per epoch\n"
        "sa             64     2  0.60 +- 0.14      -  2.0 +- 0.0            -\n"
        "none           64     1          0.10      -         2.0            -\n"
        "chance        128     1             -    7.0           -            -\n"
        "sa            128     1          0.75      -         2.0            -\n");
  experiment.conditions_in_columns = true;
  CHECK(summary_table(experiment, results) ==
        "accuracy for length            64   128\n"
        "sa                   0.60 +- 0.14  0.75\n"
        "none                         0.10     -\n"
        "chance                          -     -\n");
  experiment.conditions.push_back({{"length", 256}});
  experiment.conditions.push_back({{"length", 512}});
  CHECK(summary_table(experiment, {line(64, "sa", 0.5), line(512, "sa", 0.25)}) ==
        "accuracy for length    sa\n"
        "64                   0.50\n"
        "128                     -\n"
        "256                     -\n"
        "512                  0.25\n");
}

}  // namespace elwise::tools
