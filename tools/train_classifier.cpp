// Trains classifiers of time series with any attention mechanism, several seeds each, on the .ts files of the
// UEA archive, and reports their accuracy: the classification half of the paper's experiments (table 3 of
// arXiv 2501.05730), with a spread and a control.

#include <fmt/core.h>

#include "tools/experiments/classification.h"

namespace elwise::tools {
namespace {

struct Options {
  ExperimentOptions experiment;
  ClassificationOptions classification;
  std::string embedding = "conv";
  std::string pooling = "flatten";
};

void add_model_options(CLI::App& app, Options& options) {
  models::ClassifierConfig& model = options.classification.model;
  const auto count = positive_number();
  app.add_option("--layers", model.layers, "encoder layers")->check(count)->capture_default_str();
  app.add_option("--hidden", model.hidden, "hidden size")->check(count)->capture_default_str();
  app.add_option("--heads", model.heads, "heads of sa and la")->check(count)->capture_default_str();
  app.add_option("--intermediate", model.intermediate, "size between the two feed-forward products")
      ->check(count)
      ->capture_default_str();
  app.add_option("--dropout", model.dropout, "while training")
      ->check(CLI::Range(0.0, 0.9))
      ->capture_default_str();
  app.add_option("--embedding", options.embedding,
                 "of a series' rows: conv (each with its two neighbours) or linear (each alone)")
      ->check(CLI::IsMember({"conv", "linear"}))
      ->capture_default_str();
  app.add_option(
         "--pooling", options.pooling,
         "of tokens into a series' vector: flatten (side by side, padding as 0) or mean (of those that "
         "are not padding)")
      ->check(CLI::IsMember({"flatten", "mean"}))
      ->capture_default_str();
  app.add_option("--projection-scale", model.projection_scale,
                 "multiplies the query and key projections at first: large ones try an attention's stability")
      ->check(count)
      ->capture_default_str();
}

void add_options(CLI::App& app, Options& options) {
  ClassificationOptions& classification = options.classification;
  add_experiment_options(app, options.experiment);
  app.add_option("--train", classification.train, ".ts file to train on")->required();
  app.add_option("--test", classification.test, ".ts file to test on")->required();
  add_model_options(app, options);
  app.add_option("--validation", classification.validation,
                 "what chooses the epoch: holdout (--validation-share of the training series, drawn by the "
                 "seed), or test: the test set itself, as in the Time Series Library, which flatters")
      ->check(CLI::IsMember({"holdout", "test"}))
      ->capture_default_str();
  app.add_option("--validation-share", classification.validation_share, "of the training series, held out")
      ->check(CLI::Range(0.01, 0.9))
      ->capture_default_str();
  app.add_option("--normalize", classification.normalize,
                 "each dimension to mean 0 and deviation 1: of the training series (train), or each file by "
                 "itself as in the Time Series Library (split)")
      ->check(CLI::IsMember({"train", "split"}))
      ->capture_default_str();
}

/// Checks what CLI11 cannot. Throws UsageError.
void finish(Options& options) {
  models::ClassifierConfig& model = options.classification.model;
  finish_experiment_options(options.experiment);
  if (model.hidden % model.heads != 0) {
    throw UsageError(fmt::format("hidden: {} is not divisible by {} heads", model.hidden, model.heads));
  }
  model.embedding =
      options.embedding == "conv" ? models::SeriesEmbedding::conv : models::SeriesEmbedding::linear;
  model.pooling = options.pooling == "flatten" ? models::Pooling::flatten : models::Pooling::mean;
  model.options = options.experiment.tensor_options();
}

/// What is done, in words; --quiet keeps only what a reader of the table must know.
void introduce(const Classification& classification, const Options& options) {
  const bool on_test = options.classification.validation == "test";
  if (on_test) {
    fmt::print(
        "The epoch is chosen on the test set, as in the Time Series Library: each accuracy is the best that "
        "the "
        "test set saw in any epoch, more than the model would reach on new data.\n");
  }
  if (options.experiment.quiet) return;
  const SeriesSet& training = classification.training();
  fmt::print("{}: {} training series, {} test series of {} dimensions, {} classes, at most {} values long\n",
             training.header.problem, training.series.size(), classification.test().series.size(),
             training.header.dimensions, training.header.labels.size(), classification.positions());
  if (!on_test) {
    fmt::print("{} of the training series choose the epoch; the test set is looked at once, at the end\n",
               classification.held_out());
  }
  std::fflush(stdout);
}

}  // namespace
}  // namespace elwise::tools

int main(int argc, char** argv) {
  using namespace elwise::tools;
  CLI::App app("Trains classifiers of time series with any attention mechanism.", "train_classifier");
  Options options;
  options.experiment.training.optimizer = "radam";
  add_options(app, options);
  return run_program(app, argc, argv, [&] {
    finish(options);
    const Classification classification(options.classification);
    introduce(classification, options);
    return run_experiment(options.experiment, classification.experiment(options.experiment.training.batch));
  });
}
