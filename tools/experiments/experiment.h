#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "tools/experiments/options.h"
#include "tools/taylor_products.h"

// Experiments: a model is trained with each attention of a list under each seed of a list, stopped early on a
// validation score, tested with its best parameters, and the results are averaged over the seeds.

namespace elwise::tools {

/// Which run of an experiment.
struct TrialId {
  std::string attention;
  uint64_t seed = 0;
  nlohmann::ordered_json condition = nlohmann::ordered_json::object();  // one of the experiment's

  /// The fields "attention", those of the condition, "seed".
  nlohmann::ordered_json to_json() const;
  /// "ea-6, length 64, seed 3".
  std::string name() const;
};

/// How good a model is on the validation data.
struct Validation {
  double score = 0;      // the higher, the better; a value that is not a number is worse than all others
  double tie_break = 0;  // compared where scores are equal
  nlohmann::ordered_json fields =
      nlohmann::ordered_json::object();  // numbers for the epoch's line, such as "validation_accuracy"
};

/// One run: a fresh model with its data. All that it draws comes from its seed and the epoch's number, or
/// from default_generator(), whose state checkpoints keep.
class Trial {
 public:
  virtual ~Trial() = default;

  virtual nn::Module& model() = 0;
  /// Forms the batches of epoch 0, 1, .. and returns how many they are, the same number for each epoch.
  virtual int64_t begin_epoch(int64_t epoch) = 0;
  /// The mean loss of one batch of the epoch, a scalar that backward() is called on.
  virtual Tensor loss(int64_t batch) = 0;
  /// Looks at the validation data after epoch `epoch` (0, 1, ..). The model is in eval(), nothing is
  /// recorded.
  virtual Validation validate(int64_t epoch) = 0;
  /// The results, with the best parameters: fields for the run's last line. Otherwise as validate().
  virtual nlohmann::ordered_json test() = 0;

  /// How many examples test() looks at.
  virtual int64_t test_examples() const = 0;
  /// What every layer's attention gets for test example 0, 1, .. alone, without padding. The model is in
  /// eval().
  virtual std::vector<QueriesAndKeys> queries_and_keys(int64_t test_example) const = 0;
};

/// A result of the final table, as mean +- standard deviation over the seeds.
struct Metric {
  std::string field;   // of the runs' last lines
  std::string header;  // of the table's column
  int digits = 4;      // after the point
};

/// What an experiment consists of, beside the options.
struct Experiment {
  /// All that the results depend on, beside ExperimentOptions::training, the attention, the seed and the
  /// condition. Written to the runs' last lines; a checkpoint with other settings is refused, but that more
  /// epochs are fine where the learning rate does not depend on their number.
  nlohmann::ordered_json settings = nlohmann::ordered_json::object();
  /// Each attention and seed is run under each of these: objects of the fields that differ, such as
  /// {"length": 64}, which become columns of the table.
  std::vector<nlohmann::ordered_json> conditions = {nlohmann::ordered_json::object()};
  /// Results of what needs no training, for the table: objects with "attention" (their name), the fields of
  /// their condition and those of the metrics.
  std::vector<nlohmann::ordered_json> baselines = {};
  std::vector<Metric> metrics = {};
  /// The table: attentions against conditions, of the first metric alone.
  bool conditions_in_columns = false;
  std::string plot_script = "plot_experiment.py";
  /// Makes a run whose parameters are drawn from default_generator(), seeded with the run's seed.
  std::function<std::unique_ptr<Trial>(const TrialId&)> make = {};
};

/// Runs all of `experiment`, one run after another: shows progress, writes a JSON line for each epoch and
/// each run, saves after each epoch, draws the plots, and prints the table. Returns an exit status:
/// kExitInterrupted after Ctrl-C, which ends it at once; --resume then goes on behind the last whole epoch. A
/// run whose loss stops being finite ends there and is tested with its best parameters so far; its line and
/// the table say so. Throws Error, and UsageError for a --checkpoint that holds runs when not to be resumed.
int run_experiment(const ExperimentOptions& options, const Experiment& experiment);

}  // namespace elwise::tools
