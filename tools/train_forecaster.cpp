// Trains causal Transformers with the attentions of a list to forecast one column of a .csv file, several
// seeds each, and puts their test errors in one table with forecasts that need no network.

#include <fmt/core.h>

#include <map>
#include <memory>
#include <string>

#include "tools/experiments/forecast_trial.h"
#include "tools/model_options.h"

namespace elwise::tools {
namespace {

ExperimentOptions training_defaults() {
  ExperimentOptions options;
  options.training.schedule = "cosine";
  options.training.batch = 64;
  options.training.epochs = 15;
  options.training.patience = 5;
  return options;
}

struct Options {
  std::filesystem::path data;
  std::string target = "OT";
  std::string split = "auto";
  std::vector<int64_t> horizons = {6};
  std::vector<std::string> marks = {"hour"};
  std::string embedding = "linear";
  std::string norm = "post";
  bool no_embedding_norm = false;
  models::ForecasterConfig model = {};
  ExperimentOptions experiment = training_defaults();
};

void add_model_options(CLI::App& app, Options& options) {
  models::ForecasterConfig& model = options.model;
  const auto count = positive_number();
  app.add_option("--hidden", model.hidden, "hidden size")->check(count)->capture_default_str();
  app.add_option("--layers", model.layers, "encoder layers")->check(count)->capture_default_str();
  app.add_option("--heads", model.heads, "heads of sa and la")->check(count)->capture_default_str();
  app.add_option("--intermediate", model.intermediate, "size between the two feed-forward products")
      ->check(count)
      ->capture_default_str();
  app.add_option("--dropout", model.dropout, "of embeddings and block outputs, while training")
      ->check(CLI::Range(0.0, 0.9))
      ->capture_default_str();
  app.add_option("--norm", options.norm, "LayerNorm after each block (post) or before it (pre)")
      ->check(CLI::IsMember({"post", "pre"}))
      ->capture_default_str();
  app.add_flag("--no-embedding-norm", options.no_embedding_norm,
               "no LayerNorm between the embedding and the first layer");
  app.add_option("--marks", options.marks,
                 "calendar marks with a learned embedding, comma-separated: month, day, weekday, hour, "
                 "minute; or none")
      ->take_all()
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--embedding", options.embedding,
                 "of a value: linear (conv, the Time Series Library's, is refused: a causal model "
                 "must not see the value after)")
      ->check(CLI::IsMember({"linear", "conv"}))
      ->capture_default_str();
}

void add_options(CLI::App& app, Options& options) {
  add_experiment_options(app, options.experiment);
  app.add_option("--data", options.data, ".csv file: a line of column names, one of them \"date\", then rows")
      ->required();
  app.add_option("--target", options.target, "column to forecast, from itself")->capture_default_str();
  app.add_option("--split", options.split,
                 "training, validation and test rows: etth (12/4/4 months of hours), ettm (of quarters of an "
                 "hour), ratio (70/10/20 %), or auto: by the file's name, as the Time Series Library does")
      ->check(CLI::IsMember({"auto", "etth", "ettm", "ratio"}))
      ->capture_default_str();
  app.add_option("--length", options.model.length, "rows that a forecast is made from")
      ->check(positive_number())
      ->capture_default_str();
  app.add_option("--horizon", options.horizons, "rows that are forecast; of several, comma-separated, each")
      ->check(positive_number())
      ->take_all()
      ->delimiter(',')
      ->capture_default_str();
  add_model_options(app, options);
}

models::ForecasterConfig config_for(const Options& options, const std::string& attention, int64_t horizon) {
  models::ForecasterConfig config = options.model;
  config.attention = nn::Mechanism::parse(attention);
  config.horizon = horizon;
  return config;
}

/// Checks what CLI11 cannot. Throws UsageError.
void finish(Options& options) {
  finish_experiment_options(options.experiment);
  check_distinct("horizon", options.horizons);
  check_distinct("marks", options.marks);
  models::ForecasterConfig& model = options.model;
  model.embedding_norm = !options.no_embedding_norm;
  model.norm = options.norm == "post" ? nn::NormPlacement::post : nn::NormPlacement::pre;
  if (options.embedding == "conv") model.embedding = models::ValueEmbedding::conv;
  try {
    model.marks = parse_marks(options.marks);
    model.options.device = kMeta;  // makes each model without its memory, to see whether it can be made
    for (const std::string& attention : options.experiment.attentions) {
      models::Forecaster(config_for(options, attention, options.horizons.front()));
    }
  } catch (const Error& error) {
    throw UsageError(error.what());
  }
  model.options = options.experiment.tensor_options();
}

using DataOfHorizon = std::map<int64_t, std::shared_ptr<const ForecastingData>>;

nlohmann::ordered_json settings_of(const Options& options, SplitRule rule, const ForecastingData& data) {
  const models::ForecasterConfig& model = options.model;
  return {{"data", options.data.filename().string()},
          {"target", options.target},
          {"rows", data.series().values.size()},
          {"split", description_of(rule)},
          {"training_mean", data.mean()},
          {"training_deviation", data.deviation()},
          {"length", model.length},
          {"hidden", model.hidden},
          {"layers", model.layers},
          {"heads", model.heads},
          {"intermediate", model.intermediate},
          {"dropout", model.dropout},
          {"norm", options.norm},
          {"embedding_norm", model.embedding_norm},
          {"marks", options.marks}};
}

/// What the numbers are of: the file, its split, its windows and their scale.
void print_data(const Options& options, SplitRule rule, const DataOfHorizon& data) {
  const ForecastingData& any = *data.begin()->second;
  fmt::print("{}: {} rows of {}, split {}{}\n", options.data.filename().string(), any.series().values.size(),
             options.target, description_of(rule), options.split == "auto" ? " (by the file's name)" : "");
  for (const auto& [horizon, windows] : data) {
    const Split& split = windows->split();
    fmt::print("{} rows -> {}: {} training, {} validation and {} test windows\n", windows->length(), horizon,
               windows->windows(split.training), windows->windows(split.validation),
               windows->windows(split.test));
  }
  fmt::print("standardised by the training rows: mean {:.4f}, standard deviation {:.4f}\n\n", any.mean(),
             any.deviation());
  std::fflush(stdout);
}

/// Persistence and the hourly linear model, for each horizon.
std::vector<nlohmann::ordered_json> baselines_of(const DataOfHorizon& data) {
  std::vector<nlohmann::ordered_json> lines;
  for (const auto& [horizon, windows] : data) {
    const Rows& test = windows->split().test;
    const std::pair<const char*, ForecastErrors> controls[] = {
        {"persistence", persistence_errors(*windows, test)},
        {"linear per hour", hourly_linear_errors(*windows, test)}};
    for (const auto& [name, errors] : controls) {
      nlohmann::ordered_json line = {{"attention", name}, {"horizon", horizon}};
      line.update(test_fields(errors, *windows));
      lines.push_back(line);
    }
  }
  return lines;
}

int run(const Options& options) {
  const SplitRule rule = split_rule_named(options.split).value_or(split_rule_of(options.data));
  const TimeSeries series = read_time_series(options.data, options.target);
  DataOfHorizon data;
  for (const int64_t horizon : options.horizons) {
    try {
      data[horizon] =
          std::make_shared<ForecastingData>(series, rule, options.model.length, horizon, options.model.marks);
    } catch (const Error& error) {
      fail(options.data.string(), ": ", error.what());
    }
  }
  if (!options.experiment.quiet) print_data(options, rule, data);
  Experiment experiment{.settings = settings_of(options, rule, *data.begin()->second),
                        .conditions = {},
                        .baselines = baselines_of(data),
                        .metrics = {{"test_mae", "MAE"},
                                    {"test_rmse", "RMSE"},
                                    {"test_mae_scaled", "MAE scaled"},
                                    {"test_rmse_scaled", "RMSE scaled"}}};
  for (const int64_t horizon : options.horizons) experiment.conditions.push_back({{"horizon", horizon}});
  experiment.make = [&](const TrialId& id) -> std::unique_ptr<Trial> {
    const auto horizon = id.condition.at("horizon").get<int64_t>();
    return std::make_unique<ForecastTrial>(data.at(horizon), config_for(options, id.attention, horizon),
                                           id.seed, options.experiment.training.batch);
  };
  return run_experiment(options.experiment, experiment);
}

}  // namespace
}  // namespace elwise::tools

int main(int argc, char** argv) {
  using namespace elwise::tools;
  CLI::App app("Trains forecasters with different attentions on one column of a .csv file.",
               "train_forecaster");
  Options options;
  add_options(app, options);
  return run_program(app, argc, argv, [&] {
    finish(options);
    return run(options);
  });
}
