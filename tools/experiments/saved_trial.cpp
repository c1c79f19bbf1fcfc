#include "tools/experiments/saved_trial.h"

#include "models/config.h"
#include "nn/checkpoint.h"
#include "tools/experiments/classification.h"
#include "tools/experiments/forecast_trial.h"
#include "tools/experiments/recall_training.h"
#include "tools/experiments/saved_run.h"

namespace elwise::tools {
namespace {

using nlohmann::ordered_json;

/// The values of the named settings.
struct Settings {
  const ordered_json& json;

  template <class T>
  void get(const char* name, T& value) const {
    json.at(name).get_to(value);
  }
  int64_t integer(const char* name) const { return json.at(name).get<int64_t>(); }
  std::string text(const char* name) const { return json.at(name).get<std::string>(); }
  nn::Mechanism attention() const { return nn::Mechanism::parse(text("attention")); }

  /// hidden, layers, heads, intermediate and dropout.
  template <class Config>
  void get_sizes(Config& model) const {
    get("hidden", model.hidden);
    get("layers", model.layers);
    get("heads", model.heads);
    get("intermediate", model.intermediate);
    get("dropout", model.dropout);
  }

  /// Throws Error unless the data have the settings that say what they are.
  void check_data(const ordered_json& of_data) const {
    for (const auto& [name, value] : of_data.items()) {
      ELWISE_CHECK(json.at(name) == value, "checkpoint: the run was trained on data with ", name, " ",
                   json.at(name).dump(), ", the files have ", value.dump());
    }
  }
};

void expect(const std::filesystem::path& file, const char* option, const char* program) {
  if (file.empty()) throw UsageError(std::string(option) + ": expected the file that " + program + " read");
}

std::unique_ptr<Trial> classification_trial(const Settings& settings, const DataFiles& files) {
  expect(files.train, "train", "train_classifier");
  expect(files.test, "test", "train_classifier");
  ClassificationOptions options{.train = files.train, .test = files.test};
  settings.get("validation", options.validation);
  settings.get("normalize", options.normalize);
  options.validation_share = static_cast<double>(settings.integer("validation_series")) /
                             static_cast<double>(settings.integer("training_series"));
  models::ClassifierConfig& model = options.model;
  settings.get_sizes(model);
  settings.get("projection_scale", model.projection_scale);
  model.embedding =
      settings.text("embedding") == "conv" ? models::SeriesEmbedding::conv : models::SeriesEmbedding::linear;
  model.pooling = settings.text("pooling") == "flatten" ? models::Pooling::flatten : models::Pooling::mean;
  const Classification classification(options);
  const Experiment experiment = classification.experiment(settings.integer("batch"));
  settings.check_data(experiment.settings);
  return experiment.make({settings.text("attention"), settings.json.at("seed").get<uint64_t>()});
}

std::unique_ptr<Trial> forecast_trial(const Settings& settings, const DataFiles& files) {
  expect(files.data, "data", "train_forecaster");
  models::ForecasterConfig model;
  settings.get_sizes(model);
  settings.get("length", model.length);
  settings.get("horizon", model.horizon);
  settings.get("embedding_norm", model.embedding_norm);
  model.norm = settings.text("norm") == "pre" ? nn::NormPlacement::pre : nn::NormPlacement::post;
  model.marks = parse_marks(settings.json.at("marks").get<std::vector<std::string>>());
  model.attention = settings.attention();
  SplitRule rule = SplitRule::ratio;
  for (const SplitRule each : {SplitRule::etth, SplitRule::ettm}) {
    if (settings.text("split") == description_of(each)) rule = each;
  }
  auto data = std::make_shared<const ForecastingData>(read_time_series(files.data, settings.text("target")),
                                                      rule, model.length, model.horizon, model.marks);
  settings.check_data({{"rows", data->series().values.size()},
                       {"training_mean", data->mean()},
                       {"training_deviation", data->deviation()}});
  return std::make_unique<ForecastTrial>(data, model, settings.json.at("seed").get<uint64_t>(),
                                         settings.integer("batch"));
}

std::unique_ptr<Trial> recall_trial(const Settings& settings) {
  RecallConfig task{.task = parse_recall_task(settings.text("task"))};
  settings.get("length", task.length);
  settings.get("pairs", task.pairs);
  settings.get("vocabulary", task.vocabulary);
  if (task.task == RecallTask::mqar) settings.get("power", task.power);
  ordered_json model = settings.json;
  model["positions"] = task.length;
  const RecallTraining training{.sizes = {task},
                                .model = models::parse_config(model.dump()),
                                .test = settings.integer("test_sequences")};
  const Experiment experiment = recall_experiment(training, settings.integer("batch"));
  return experiment.make(
      {settings.text("attention"), settings.json.at("seed").get<uint64_t>(), experiment.conditions.front()});
}

/// Where train_.. --checkpoint was told to save, the runs have folders of their own. Throws Error.
void check_is_run(const std::filesystem::path& folder) {
  if (SavedRun(folder).exists()) return;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    ELWISE_CHECK(!SavedRun(entry.path()).exists(), "checkpoint: ", folder.string(),
                 " holds several runs: expected the folder of one, such as ", entry.path().string());
  }
  fail("checkpoint: ", folder.string(), " holds no run that a program of Elwise saved");
}

}  // namespace

SavedTrial load_trial(const std::filesystem::path& folder, const DataFiles& files) {
  check_is_run(folder);
  const auto [state, best] = SavedRun(folder).load();
  const Settings settings{state.settings};
  SavedTrial result;
  try {
    result.attention = settings.text("attention");
    result.causal = !settings.json.contains("problem");
    result.trial = settings.json.contains("problem")   ? classification_trial(settings, files)
                   : settings.json.contains("horizon") ? forecast_trial(settings, files)
                                                       : recall_trial(settings);
  } catch (const ordered_json::exception& problem) {
    fail("checkpoint: ", folder.string(), " is of a program that is not known here: ", problem.what());
  }
  ELWISE_CHECK(nn::load_parameters(result.trial->model(), best).missing.empty(),
               "checkpoint: ", folder.string(), " belongs to another model than its settings say");
  result.trial->model().eval();
  return result;
}

}  // namespace elwise::tools
