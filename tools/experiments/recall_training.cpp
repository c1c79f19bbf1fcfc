#include "tools/experiments/recall_training.h"

#include <algorithm>
#include <functional>
#include <numeric>

#include "autograd/grad_mode.h"
#include "models/config.h"
#include "ops/loss.h"
#include "ops/reduce.h"
#include "ops/view.h"

namespace elwise::tools {
namespace {

using nlohmann::ordered_json;

constexpr uint64_t kHeldOutSeed = 0;  // of validation and test examples, for every run
constexpr int64_t kEvaluationBatch = 64;

ordered_json condition_of(const RecallConfig& task) {
  return {{"length", task.length}, {"pairs", task.pairs}};
}

/// What guessing reaches: among all values and, where it differs, among those that the sequence holds.
std::vector<ordered_json> guesses(const RecallConfig& task) {
  const auto line = [&](const char* name, double accuracy) {
    ordered_json json = {{"attention", name}, {"task", name_of(task.task)}};
    json.update(condition_of(task));
    json["test_accuracy"] = accuracy;
    return json;
  };
  const double any = 1.0 / static_cast<double>(possible_answers(task));
  std::vector<ordered_json> lines = {line("a guess among all values", any)};
  const double same = 1.0 / static_cast<double>(task.pairs);  // the guess is of the place that is asked for
  if (task.task == RecallTask::mqar) lines.push_back(line("a guess among the values seen", same));
  if (task.task == RecallTask::copy)
    lines.push_back(line("a guess among the values seen", same + (1 - same) * any));
  return lines;
}

models::BertConfig model_for(const RecallTraining& training, const RecallConfig& task,
                             const std::string& attention) {
  models::BertConfig config = training.model;
  config.attention = nn::Mechanism::parse(attention);
  config.vocabulary = task.vocabulary;
  config.positions = task.length;
  return config;
}

/// The number of answers that are the most probable tokens: kNoTarget is none. logits [rows, vocabulary],
/// targets [rows].
int64_t right_answers(const Tensor& logits, const Tensor& targets) {
  const auto predicted = argmax(logits, 1).to_vector<int64_t>(), expected = targets.to_vector<int64_t>();
  return std::inner_product(predicted.begin(), predicted.end(), expected.begin(), int64_t{0}, std::plus(),
                            std::equal_to());
}

class RecallTrial : public Trial {
 public:
  RecallTrial(const RecallTraining& training, const RecallConfig& task, int64_t batch, const TrialId& id)
      : training_(training),
        task_(task),
        batch_(batch),
        seed_(id.seed),
        model_(model_for(training, task, id.attention)) {}

  nn::Module& model() override { return model_; }

  int64_t begin_epoch(int64_t epoch) override {
    epoch_ = epoch;
    return training_.batches;
  }

  Tensor loss(int64_t batch) override {
    const int64_t first = (epoch_ * training_.batches + batch) * batch_;
    const RecallBatch examples =
        recall_batch(task_, RecallSplit::training, seed_, first, batch_, model_.config().options.device);
    return model_.loss(examples.tokens, examples.targets);
  }

  Validation validate(int64_t) override {
    const RecallScore score =
        recall_score(model_, task_, RecallSplit::validation, training_.validation, kEvaluationBatch);
    return {.score = score.accuracy,
            .tie_break = -score.loss,
            .fields = {{"validation_loss", score.loss}, {"validation_accuracy", score.accuracy}}};
  }

  ordered_json test() override {
    const RecallScore score =
        recall_score(model_, task_, RecallSplit::test, training_.test, kEvaluationBatch);
    return {{"test_accuracy", score.accuracy},
            {"test_loss", score.loss},
            {"chance", 1.0 / static_cast<double>(possible_answers(task_))}};
  }

  int64_t test_examples() const override { return training_.test; }

  std::vector<QueriesAndKeys> queries_and_keys(int64_t test_example) const override {
    const RecallBatch example =
        recall_batch(task_, RecallSplit::test, kHeldOutSeed, test_example, 1, model_.config().options.device);
    return tools::queries_and_keys(model_, example.tokens);
  }

 private:
  const RecallTraining training_;
  const RecallConfig task_;
  int64_t batch_;
  uint64_t seed_;
  models::Decoder model_;
  int64_t epoch_ = 0;
};

}  // namespace

RecallScore recall_score(const models::Decoder& model, const RecallConfig& task, RecallSplit split,
                         int64_t count, int64_t batch) {
  const NoGradGuard inference;
  RecallScore score;
  for (int64_t first = 0; first < count; first += batch) {
    const int64_t rows = std::min(batch, count - first);
    const RecallBatch examples =
        recall_batch(task, split, kHeldOutSeed, first, rows, model.config().options.device);
    const Tensor logits = reshape(model.forward(examples.tokens), {-1, model.config().vocabulary});
    const Tensor targets = reshape(examples.targets, {-1});
    // Every sequence asks for as many answers, so that means over batches weigh by their rows.
    score.loss += cross_entropy(logits, targets, models::kNoTarget).item() * static_cast<double>(rows);
    score.accuracy += static_cast<double>(right_answers(logits, targets));
  }
  score.loss /= static_cast<double>(count);
  score.accuracy /= static_cast<double>(count * task.pairs);
  return score;
}

Experiment recall_experiment(const RecallTraining& training, int64_t batch) {
  ELWISE_CHECK(!training.sizes.empty(), "recall: expected at least one length and number of pairs");
  Experiment experiment;
  experiment.conditions.clear();
  for (const RecallConfig& task : training.sizes) {
    check(task);
    experiment.conditions.push_back(condition_of(task));
    for (const ordered_json& line : guesses(task)) experiment.baselines.push_back(line);
  }
  const RecallConfig& first = training.sizes.front();
  experiment.settings = {{"task", name_of(first.task)}};
  if (first.task == RecallTask::mqar) experiment.settings["power"] = first.power;
  ordered_json model = ordered_json::parse(models::config_text(model_for(training, first, "none")));
  for (const char* each : {"attention", "positions"}) model.erase(each);  // differ from run to run
  experiment.settings.update(model);
  experiment.settings.update({{"batches", training.batches},
                              {"validation_sequences", training.validation},
                              {"test_sequences", training.test}});
  experiment.metrics = {{.field = "test_accuracy", .header = "test accuracy", .digits = 3}};
  experiment.conditions_in_columns = true;
  experiment.plot_script = "plot_recall.py";
  experiment.make = [training, batch](const TrialId& id) -> std::unique_ptr<Trial> {
    const auto task = std::find_if(training.sizes.begin(), training.sizes.end(),
                                   [&](const RecallConfig& t) { return condition_of(t) == id.condition; });
    ELWISE_CHECK(task != training.sizes.end(), "recall: no task of ", id.name());
    return std::make_unique<RecallTrial>(training, *task, batch, id);
  };
  return experiment;
}

}  // namespace elwise::tools
