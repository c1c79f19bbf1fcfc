#include "tools/experiments/experiment.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "autograd/grad_mode.h"
#include "core/cost.h"
#include "core/parallel.h"
#include "nn/checkpoint.h"
#include "nn/schedule.h"
#include "tools/experiments/saved_run.h"
#include "tools/experiments/summary.h"
#include "tools/json_lines.h"
#include "tools/plot_script.h"
#include "tools/stopwatch.h"

namespace elwise::tools {
namespace {

using nlohmann::ordered_json;

std::string text_of(const ordered_json& value) {
  if (value.is_number_float()) return fmt::format("{:.4f}", value.get<double>());
  return value.is_string() ? value.get<std::string>() : value.dump();
}

/// "validation accuracy 0.9815  validation loss 0.1123"; lists and objects are left to the JSON line.
std::string fields_text(const ordered_json& fields) {
  std::string text;
  for (const auto& [name, value] : fields.items()) {
    if (value.is_structured()) continue;
    std::string words = name;
    std::replace(words.begin(), words.end(), '_', ' ');
    text += fmt::format("{}{} {}", text.empty() ? "" : "  ", words, text_of(value));
  }
  return text;
}

ordered_json to_json(const TrainingOptions& training) {
  return {{"optimizer", training.optimizer},
          {"learning_rate", training.learning_rate},
          {"schedule", training.schedule},
          {"warmup", training.warmup},
          {"weight_decay", training.weight_decay},
          {"clip", training.clip},
          {"batch", training.batch},
          {"max_epochs", training.epochs},
          {"patience", training.patience},
          {"target", value_or_null(training.target)}};
}

AdamKind adam_kind(const std::string& name) {
  if (name == "adamw") return AdamKind::adamw;
  return name == "radam" ? AdamKind::radam : AdamKind::adam;
}

/// As many threads, `most` at most, as a step of so many floating-point operations keeps busy. To hand out
/// its hundreds of small kernels takes more than a second thread gains in a step of 1e9; any number gives the
/// same bits.
int threads_for(double flops, int most) {
  constexpr double kFlopsPerThread = 1.5e9;
  return static_cast<int>(std::clamp(flops / kFlopsPerThread, 1.0, static_cast<double>(most)));
}

/// One run, from its start or from where it was saved to its end.
class TrialRun {
 public:
  TrialRun(const ExperimentOptions& options, const Experiment& experiment, TrialId id, JsonLines& json);

  /// The run's last line; nothing when Ctrl-C ended it.
  std::optional<ordered_json> run(const InterruptFlag& interrupt);

 private:
  enum class EpochEnd { whole, interrupted, diverged };

  bool wants_epoch() const;
  double learning_rate(int64_t batches) const;
  EpochEnd train_epoch(const InterruptFlag& interrupt, double& mean_loss);
  void validate(double mean_loss, double training_seconds);
  ordered_json conclude(bool diverged);
  void report(const ordered_json& line);

  const ExperimentOptions& options_;
  const TrainingOptions& training_;
  const Experiment& experiment_;
  TrialId id_;
  JsonLines& json_;
  SavedRun saved_;
  RunState state_;
  std::unique_ptr<Trial> trial_;
  Parameters best_;
  std::optional<nn::Adam> optimizer_;
  ProgressLine progress_;
};

std::filesystem::path run_folder(const ExperimentOptions& options, const TrialId& id) {
  if (options.checkpoint.empty()) return {};
  std::string name = id.attention;
  for (const auto& [field, value] : id.condition.items())
    name += fmt::format("-{}-{}", field, text_of(value));
  return options.checkpoint / fmt::format("{}-seed-{}", name, id.seed);
}

TrialRun::TrialRun(const ExperimentOptions& options, const Experiment& experiment, TrialId id,
                   JsonLines& json)
    : options_(options),
      training_(options.training),
      experiment_(experiment),
      id_(std::move(id)),
      json_(json),
      saved_(run_folder(options, id_)),
      progress_(!options.quiet) {
  state_.settings = id_.to_json();
  state_.settings.update(to_json(training_));
  state_.settings.update(experiment_.settings);
}

bool TrialRun::wants_epoch() const {
  const bool reached = training_.target && state_.best_epoch > 0 && state_.best_score >= *training_.target;
  return state_.epochs < training_.epochs && state_.waited < training_.patience && !reached;
}

/// Of the coming step. As in train_lm the schedule is taken at the middle of a step.
double TrialRun::learning_rate(int64_t batches) const {
  const int64_t total = 2 * training_.epochs * batches;
  const auto warmup = static_cast<int64_t>(std::llround(training_.warmup * static_cast<double>(total)));
  const int64_t now = 2 * optimizer_->steps() + 1;
  return training_.learning_rate * (training_.schedule == "cosine" ? nn::cosine_schedule(now, warmup, total)
                                                                   : nn::constant_schedule(now, warmup));
}

TrialRun::EpochEnd TrialRun::train_epoch(const InterruptFlag& interrupt, double& mean_loss) {
  nn::Module& model = trial_->model();
  model.train();
  const int64_t batches = trial_->begin_epoch(state_.epochs);
  ELWISE_CHECK(batches > 0, "training: expected at least one batch in an epoch");
  const std::string text = fmt::format("batches, epoch {}, {}", state_.epochs + 1, id_.name());
  double sum = 0;
  for (int64_t batch = 0; batch < batches; ++batch) {
    if (interrupt.raised()) return EpochEnd::interrupted;
    const double flops_before = cost_totals().flops;
    optimizer_->set_learning_rate(learning_rate(batches));
    optimizer_->zero_grad();
    const Tensor loss = trial_->loss(batch);
    const double value = loss.item();
    if (!std::isfinite(value)) return EpochEnd::diverged;
    sum += value;
    loss.backward();
    const double most = training_.clip > 0 ? training_.clip : std::numeric_limits<double>::infinity();
    if (!std::isfinite(nn::clip_gradient_norm(model, most))) return EpochEnd::diverged;
    optimizer_->step();
    if (batch == 0) set_num_threads(threads_for(cost_totals().flops - flops_before, options_.threads));
    progress_.show(batch + 1, batches, text);
  }
  mean_loss = sum / static_cast<double>(batches);
  return EpochEnd::whole;
}

void TrialRun::validate(double mean_loss, double training_seconds) {
  const Stopwatch watch(training_seconds);
  trial_->model().eval();
  Validation validation;
  {
    const NoGradGuard inference;
    validation = trial_->validate(state_.epochs);
  }
  ++state_.epochs;
  ++state_.waited;
  const bool better =
      std::isfinite(validation.score) &&
      (state_.best_epoch == 0 || validation.score > state_.best_score ||
       (validation.score == state_.best_score && validation.tie_break > state_.best_tie_break));
  if (better) {
    state_.best_epoch = state_.epochs;
    state_.best_score = validation.score;
    state_.best_tie_break = validation.tie_break;
    state_.waited = 0;
    best_ = copy_parameters(trial_->model());
  }
  ordered_json line = id_.to_json();
  line.update({{"epoch", state_.epochs},
               {"learning_rate", optimizer_->learning_rate()},
               {"training_loss", mean_loss}});
  line.update(validation.fields);
  line.update({{"best", better}, {"training_seconds", training_seconds}, {"seconds", watch.seconds()}});
  state_.seconds += watch.seconds();
  state_.lines.push_back(line);
  if (options_.quiet) return;
  progress_.clear();
  fmt::print("{}  epoch {:3}  loss {:.4f}  {}{}  {:.2f} s\n", id_.name(), state_.epochs, mean_loss,
             fields_text(validation.fields), better ? " *" : "  ", watch.seconds());
  std::fflush(stdout);
}

ordered_json TrialRun::conclude(bool diverged) {
  nn::load_parameters(trial_->model(), best_);
  trial_->model().eval();
  ordered_json results;
  {
    const NoGradGuard inference;
    results = trial_->test();
  }
  double training_seconds = 0;
  for (const ordered_json& line : state_.lines) training_seconds += line.at("training_seconds").get<double>();
  ordered_json line = id_.to_json();
  line.update(results);
  line.update({{"epochs", state_.epochs},
               {"best_epoch", state_.best_epoch},
               {"diverged_in_epoch", diverged ? ordered_json(state_.epochs + 1) : ordered_json()},
               {"seconds", state_.seconds},
               {"training_seconds_per_epoch",
                training_seconds / static_cast<double>(std::max<int64_t>(state_.epochs, 1))},
               {"parameters", trial_->model().parameter_count()},
               {"threads", num_threads()}});
  line.update(state_.settings);
  return line;
}

/// On one line of the console.
void TrialRun::report(const ordered_json& line) {
  if (options_.quiet) return;
  progress_.clear();
  ordered_json results = ordered_json::object();
  for (const Metric& metric : experiment_.metrics) {
    if (line.contains(metric.field)) results[metric.field] = line.at(metric.field);
  }
  fmt::print("{}: {} epochs, the best {}, {:.1f} s: {}\n", id_.name(), state_.epochs, state_.best_epoch,
             state_.seconds, fields_text(results));
  std::fflush(stdout);
}

std::optional<ordered_json> TrialRun::run(const InterruptFlag& interrupt) {
  if (options_.resume) {
    if (const auto finished = saved_.finished(state_.settings)) {
      state_ = *finished;
      const bool diverged = !state_.lines.back().at("diverged_in_epoch").is_null();
      ELWISE_CHECK(diverged || !wants_epoch(), "resume: ", run_folder(options_, id_).string(),
                   " is finished after its ", state_.epochs,
                   " epochs and kept its best parameters alone: for ", training_.epochs,
                   " begin in another folder");
      for (const ordered_json& line : state_.lines) json_.write(line);
      report(state_.lines.back());
      return state_.lines.back();
    }
  }
  manual_seed(id_.seed);
  trial_ = experiment_.make(id_);
  optimizer_.emplace(trial_->model(), adam_kind(training_.optimizer),
                     AdamOptions{.lr = training_.learning_rate, .weight_decay = training_.weight_decay});
  best_ = copy_parameters(trial_->model());
  if (options_.resume) {
    const ordered_json settings = state_.settings;
    state_ = saved_.restore(settings, best_, trial_->model(), *optimizer_).value_or(state_);
    state_.settings = settings;  // which may have more epochs
    for (const ordered_json& line : state_.lines) json_.write(line);
  }
  set_num_threads(1);  // until a step has shown how much work it is
  bool diverged = false;
  while (wants_epoch() && !diverged) {
    const Stopwatch watch;
    double mean_loss = 0;
    const EpochEnd end = train_epoch(interrupt, mean_loss);
    if (end == EpochEnd::interrupted) return std::nullopt;
    diverged = end == EpochEnd::diverged;
    if (diverged) continue;
    validate(mean_loss, watch.seconds());
    saved_.save(state_, best_, trial_->model(), *optimizer_);
    json_.write(state_.lines.back());
  }
  progress_.clear();
  if (diverged) {
    fmt::print(stderr, "warning: {}: the loss or its gradient is not finite in epoch {}: the run ends\n",
               id_.name(), state_.epochs + 1);
  }
  state_.lines.push_back(conclude(diverged));
  state_.finished = true;
  saved_.finish(state_, best_);
  json_.write(state_.lines.back());
  report(state_.lines.back());
  return state_.lines.back();
}

std::vector<TrialId> trials_of(const ExperimentOptions& options, const Experiment& experiment) {
  std::vector<TrialId> result;
  for (const ordered_json& condition : experiment.conditions) {
    for (const std::string& attention : options.attentions) {
      for (const uint64_t seed : options.seeds) result.push_back({attention, seed, condition});
    }
  }
  return result;
}

void check_unused(const ExperimentOptions& options, const std::vector<TrialId>& trials) {
  if (options.resume) return;
  for (const TrialId& id : trials) {
    const std::filesystem::path folder = run_folder(options, id);
    if (SavedRun(folder).exists()) {
      throw UsageError(
          fmt::format("checkpoint: {} holds a run; expected --resume or another folder", folder.string()));
    }
  }
}

}  // namespace

ordered_json TrialId::to_json() const {
  ordered_json json = {{"attention", attention}};
  json.update(condition);
  json["seed"] = seed;
  return json;
}

std::string TrialId::name() const {
  std::string text = attention;
  for (const auto& [field, value] : condition.items()) text += fmt::format(", {} {}", field, text_of(value));
  return text + fmt::format(", seed {}", seed);
}

int run_experiment(const ExperimentOptions& options, const Experiment& experiment) {
  const std::vector<TrialId> trials = trials_of(options, experiment);
  check_unused(options, trials);
  if (!options.plot.empty()) make_plot_folder(options.plot);
  JsonLines json(options.json);
  std::vector<ordered_json> results = experiment.baselines;
  for (const ordered_json& line : results) json.write(line);
  const InterruptFlag interrupt;
  for (const TrialId& id : trials) {
    const auto line = TrialRun(options, experiment, id, json).run(interrupt);
    if (!line) {
      fmt::print("interrupted: {}{}\n", id.name(),
                 options.checkpoint.empty() ? "" : "; whole epochs are saved: --resume goes on");
      return kExitInterrupted;
    }
    results.push_back(*line);
  }
  fmt::print("{}{}", options.quiet ? "" : "\n", summary_table(experiment, results));
  if (options.plot.empty()) return kExitOk;
  run_plot_script(experiment.plot_script, options.json, options.plot);
  if (!options.quiet) fmt::print("plotted into {}\n", options.plot.string());
  return kExitOk;
}

}  // namespace elwise::tools
