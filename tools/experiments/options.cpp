#include "tools/experiments/options.h"

#include <fmt/core.h>

#include <cmath>

#include "core/parallel.h"
#include "tools/model_options.h"

namespace elwise::tools {
namespace {

/// Accepts numbers from 0 on: CLI11's own tells any other what the largest one is, digit by digit.
CLI::Validator nonnegative_number() {
  return CLI::Validator(
      [](const std::string& text) {
        double value = 0;
        const bool accepted = CLI::detail::lexical_cast(text, value) && value >= 0 && std::isfinite(value);
        return accepted ? std::string() : fmt::format("expected a number from 0 on, got '{}'", text);
      },
      "NONNEGATIVE");
}

void add_training_options(CLI::App& app, TrainingOptions& training) {
  const auto count = positive_number();
  app.add_option("--optimizer", training.optimizer, "adam, adamw or radam")
      ->check(CLI::IsMember({"adam", "adamw", "radam"}))
      ->capture_default_str();
  app.add_option("--learning-rate", training.learning_rate, "of the optimizer at its highest")
      ->check(count)
      ->capture_default_str();
  app.add_option("--schedule", training.schedule,
                 "of the learning rate after --warmup: constant, or cosine, which falls to 0 at the last of "
                 "--epochs")
      ->check(CLI::IsMember({"constant", "cosine"}))
      ->capture_default_str();
  app.add_option("--warmup", training.warmup, "share of all steps over which the learning rate rises")
      ->check(CLI::Range(0.0, 0.9))
      ->capture_default_str();
  app.add_option("--weight-decay", training.weight_decay,
                 "of the optimizer: decoupled in adamw, added to the gradient in adam and radam")
      ->check(nonnegative_number())
      ->capture_default_str();
  app.add_option("--clip", training.clip, "largest joint norm of the gradients; 0: any, nothing is clipped")
      ->check(nonnegative_number())
      ->capture_default_str();
  app.add_option("--batch", training.batch, "examples in a step")->check(count)->capture_default_str();
  app.add_option("--epochs", training.epochs, "passes over the training data, at most")
      ->check(count)
      ->capture_default_str();
  app.add_option("--patience", training.patience,
                 "epochs without a better validation score after which a run ends")
      ->check(count)
      ->capture_default_str();
}

}  // namespace

void add_experiment_options(CLI::App& app, ExperimentOptions& options) {
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  app.add_option("--attention", options.attentions, kAttentionHelp)
      ->take_all()
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--seeds,--seed", options.seeds,
                 "of parameters, batches and dropout, comma-separated: each attention is trained with each")
      ->take_all()
      ->delimiter(',')
      ->check(nonnegative_number())
      ->capture_default_str();
  add_training_options(app, options.training);
  app.add_option("--device", options.device_name, "cpu, cuda or cuda:N")->capture_default_str();
  add_dtype(app, options.dtype);
  app.add_option("--threads", options.threads,
                 "CPU threads, at most: a small step takes fewer, being faster so")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--checkpoint", options.checkpoint,
                 "folder to save the runs to after each epoch, and their best parameters");
  app.add_flag(
      "--resume", options.resume,
      "go on from --checkpoint, bit for bit; runs that are finished there are not repeated. Other "
      "attentions and seeds, --threads, --json and --plot are free, and so are more --epochs for a run "
      "that is not finished, with a constant --schedule and no --warmup");
  app.add_option("--json", options.json,
                 "write one JSON object per epoch and one per run to this file (--resume: those from before, "
                 "too)");
  app.add_option("--plot", options.plot,
                 "draw the results as PNG and SVG into this folder (needs python3-matplotlib); without "
                 "--json they are kept there too");
  app.add_flag("--quiet", options.quiet, "print the final table only");
}

TensorOptions ExperimentOptions::tensor_options() const {
  return {.dtype = parse_dtype(dtype), .device = device()};
}

void finish_experiment_options(ExperimentOptions& options) {
  for (std::string& attention : options.attentions) attention = parse_attention(attention).name();
  check_distinct("attention", options.attentions);
  check_distinct("seeds", options.seeds);
  Device device;
  try {
    device = options.device();
  } catch (const Error& error) {
    throw UsageError(error.what());
  }
  if (device == kMeta) throw UsageError("device: nothing is trained on meta; expected cpu or cuda");
  if (options.resume && options.checkpoint.empty()) {
    throw UsageError("resume: expected --checkpoint beside it");
  }
  if (!options.plot.empty() && options.json.empty()) options.json = options.plot / "results.json";
  check_available(device);
  set_num_threads(options.threads);
}

}  // namespace elwise::tools
