// Trains a small causal decoder on synthetic recall tasks (associative recall, selective copying, induction
// heads) with each of several attention mechanisms: what attention is needed for, and where substitutes for
// softmax attention differ.

#include <fmt/core.h>

#include <optional>
#include <string>
#include <vector>

#include "tools/experiments/recall_training.h"
#include "tools/model_options.h"

namespace elwise::tools {
namespace {

ExperimentOptions defaults() {
  ExperimentOptions options;
  options.attentions = {"sa", "la", "aft", "ea", "ea-2", "ea-6", "none"};
  TrainingOptions& training = options.training;
  training.optimizer = "adamw";
  training.learning_rate = 3e-3;
  training.schedule = "cosine";
  training.warmup = 0.1;
  training.weight_decay = 0.1;
  training.clip = 1;
  training.batch = 64;
  training.epochs = training.patience = 20;
  return options;
}

struct Options {
  std::string task = "mqar";
  std::vector<int64_t> lengths = {64};
  std::vector<int64_t> pairs = {};
  RecallConfig recall = {.vocabulary = 64};
  DecoderOptions decoder = {.positions = "learned"};
  std::optional<double> stop_at;
  RecallTraining training = {.sizes = {},
                             .model = {.vocabulary = 64,
                                       .hidden = 64,
                                       .layers = 2,
                                       .heads = 1,
                                       .intermediate = 128,
                                       .dropout = 0,
                                       .attention_dropout = 0,
                                       .initializer_deviation = 0.1}};
  ExperimentOptions experiment = defaults();
};

void add_task_options(CLI::App& app, Options& options) {
  const auto count = positive_number();
  app.add_option("--task", options.task,
                 "mqar (keys and values, then keys whose values are asked), copy (the tokens among noise, in "
                 "their order) or induction (what followed the special token before)")
      ->check(CLI::IsMember({"mqar", "copy", "induction"}))
      ->capture_default_str();
  app.add_option("--length", options.lengths, "of the sequences, comma-separated")
      ->check(count)
      ->take_all()
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--pairs", options.pairs,
                 "answers to give in a sequence, comma-separated [4; induction: 1]. Lengths without room for "
                 "so many are left out")
      ->check(count)
      ->take_all()
      ->delimiter(',');
  app.add_option("--power", options.recall.power,
                 "mqar: a query g places behind the pairs has a weight of g^(power - 1)")
      ->capture_default_str();
}

void add_options(CLI::App& app, Options& options) {
  models::BertConfig& model = options.training.model;
  const auto count = positive_number();
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  add_task_options(app, options);
  add_size_options(app, model);
  add_decoder_options(app, options.decoder, model);
  app.add_option("--batches", options.training.batches,
                 "batches of new examples in an epoch, after each of which the model is validated")
      ->check(count)
      ->capture_default_str();
  app.add_option("--validation", options.training.validation, "sequences to validate on")
      ->check(count)
      ->capture_default_str();
  app.add_option("--test", options.training.test, "sequences to test on")
      ->check(count)
      ->capture_default_str();
  app.add_option("--stop-at", options.stop_at, "validation accuracy with which a run ends, such as 0.995")
      ->check(CLI::Range(0.0, 1.0));
  add_experiment_options(app, options.experiment);
}

/// Every length with every number of pairs that it has room for. Throws UsageError when there is none.
std::vector<RecallConfig> sizes_of(const Options& options) {
  RecallConfig task = options.recall;
  task.task = parse_recall_task(options.task);
  task.vocabulary = options.training.model.vocabulary;
  std::vector<int64_t> pairs = options.pairs;
  if (pairs.empty()) pairs = {task.task == RecallTask::induction ? 1 : 4};
  std::vector<RecallConfig> sizes;
  std::string left_out;
  for (const int64_t length : options.lengths) {
    for (const int64_t number : pairs) {
      task.length = length;
      task.pairs = number;
      try {
        check(task);
        sizes.push_back(task);
      } catch (const Error& error) {
        left_out = error.what();
        if (!options.experiment.quiet) fmt::print("left out: {}\n", left_out);
      }
    }
  }
  if (sizes.empty()) throw UsageError(left_out);
  return sizes;
}

/// Checks what CLI11 cannot, and fills in the experiment. Throws UsageError.
void finish(Options& options) {
  finish_experiment_options(options.experiment);
  check_distinct("length", options.lengths);
  check_distinct("pairs", options.pairs);
  models::BertConfig& model = options.training.model;
  if (model.hidden % model.heads != 0) {
    throw UsageError(fmt::format("hidden: {} is not divisible by {} heads", model.hidden, model.heads));
  }
  finish_decoder(options.decoder, model);
  model.causal = true;
  model.token_types = 0;
  model.pooler = false;
  model.options = options.experiment.tensor_options();
  options.experiment.training.target = options.stop_at;
  options.training.sizes = sizes_of(options);
}

}  // namespace
}  // namespace elwise::tools

int main(int argc, char** argv) {
  using namespace elwise::tools;
  CLI::App app("Trains small causal decoders on synthetic recall tasks.", "train_recall");
  Options options;
  add_options(app, options);
  return run_program(app, argc, argv, [&] {
    finish(options);
    return run_experiment(options.experiment,
                          recall_experiment(options.training, options.experiment.training.batch));
  });
}
