#include "tools/lm_training.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/file.h"
#include "core/parallel.h"
#include "models/config.h"
#include "nn/optimizer.h"
#include "nn/schedule.h"
#include "tools/console.h"
#include "tools/experiments/saved_run.h"
#include "tools/stopwatch.h"

namespace elwise::tools {
namespace {

/// Every so many windows of the held-out text are looked at while training goes on.
constexpr int64_t kValidationStride = 8;
constexpr int64_t kValidationBatch = 16;

constexpr const char* kRunFile = "run.json";

/// The model, its optimizer and how far they are.
class LmRun {
 public:
  LmRun(const LmTraining& training, JsonLines& json)
      : training_(training),
        json_(json),
        text_(training.text, training.length),
        model_((manual_seed(training.seed), training.model)),
        optimizer_(model_, AdamKind::adamw,
                   {.lr = training.learning_rate, .weight_decay = training.weight_decay}),
        watch_(training.resume ? restore() : 0) {}

  int train();

 private:
  double restore();
  void save() const;
  double share() const;
  void step();
  void validate(bool last);

  const LmTraining& training_;
  JsonLines& json_;
  ByteText text_;
  models::Decoder model_;
  nn::Adam optimizer_;
  Stopwatch watch_;
  ProgressLine progress_{!training_.quiet};
  // Since the last validation:
  double loss_sum_ = 0;  // nats
  int64_t loss_count_ = 0;
  double validated_at_ = watch_.seconds();
};

/// Seconds that the run had taken when it was saved.
double LmRun::restore() {
  const std::filesystem::path& folder = training_.checkpoint;
  const models::BertConfig saved = models::load_config(folder, training_.model.options.device);
  const auto settings = [](const models::BertConfig& model) {
    return nlohmann::ordered_json::parse(models::config_text(model));
  };
  check_settings(folder / "config.json", settings(saved), settings(model_.config()));
  nn::load_checkpoint(folder, model_, optimizer_);
  try {
    return nlohmann::json::parse(read_file(folder / kRunFile)).at("seconds").get<double>();
  } catch (const nlohmann::json::exception& problem) {
    fail("resume: ", (folder / kRunFile).string(), " is damaged: ", problem.what());
  }
}

/// checkpoint.json comes last: a run that is killed in between leaves the older checkpoint.
void LmRun::save() const {
  if (training_.checkpoint.empty()) return;
  models::save_config(training_.checkpoint, model_.config());
  const nlohmann::ordered_json run = {{"seconds", watch_.seconds()}};
  write_file_atomically(training_.checkpoint / kRunFile, run.dump() + "\n");
  nn::save_checkpoint(training_.checkpoint, model_, optimizer_);
}

/// How much of the run is done, up to the middle of the coming step.
double LmRun::share() const {
  double share = 0;
  if (training_.steps) {
    share = (static_cast<double>(optimizer_.steps()) + 0.5) / static_cast<double>(*training_.steps);
  }
  if (training_.minutes) share = std::max(share, watch_.seconds() / (60 * *training_.minutes));
  return share;
}

void LmRun::step() {
  constexpr double kResolution = 1e9;  // the schedule counts in whole numbers
  const double rate =
      nn::cosine_schedule(std::llround(share() * kResolution), std::llround(training_.warmup * kResolution),
                          std::llround(kResolution));
  optimizer_.set_learning_rate(training_.learning_rate * rate);
  optimizer_.zero_grad();
  const ByteBatch batch =
      random_windows(text_.training(), training_.batch, training_.length, model_.config().options.device);
  const Tensor loss = model_.loss(batch.tokens, batch.targets);
  const double value = loss.item();
  ELWISE_CHECK(std::isfinite(value), "training: the loss of step ", optimizer_.steps() + 1, " is ", value);
  loss.backward();
  if (training_.clip > 0) nn::clip_gradient_norm(model_, training_.clip);
  optimizer_.step();
  loss_sum_ += value;
  ++loss_count_;
}

void LmRun::validate(bool last) {
  const double seconds = watch_.seconds() - validated_at_;
  std::optional<double> training_bits;
  if (loss_count_ > 0) training_bits = loss_sum_ / static_cast<double>(loss_count_) / std::numbers::ln2;
  const double bits = bits_per_byte(model_, text_.held_out(), kValidationBatch, training_.length,
                                    last ? 1 : kValidationStride);
  const auto bytes = static_cast<double>(training_.batch * training_.length);
  const double bytes_per_second = static_cast<double>(loss_count_) * bytes / seconds;
  const double minutes = watch_.seconds() / 60;
  progress_.clear();
  if (last || !training_.quiet) {
    fmt::print("step {:6}  {:6.2f} min  {:8.0f} bytes/s  training {:.4f}  {} {:.4f} bits per byte\n",
               optimizer_.steps(), minutes, bytes_per_second, training_bits.value_or(NAN),
               last ? "held out" : "validation", bits);
    std::fflush(stdout);
  }
  const models::BertConfig& model = model_.config();
  json_.write({{"attention", model.attention.name()},
               {"layers", model.layers},
               {"hidden", model.hidden},
               {"parameters", model_.parameter_count()},
               {"batch", training_.batch},
               {"length", training_.length},
               {"seed", training_.seed},
               {"threads", num_threads()},
               {"step", optimizer_.steps()},
               {"minutes", minutes},
               {"bytes_per_s", bytes_per_second},
               {"learning_rate", optimizer_.learning_rate()},
               {"training_bits_per_byte", value_or_null(training_bits)},
               {last ? "held_out_bits_per_byte" : "validation_bits_per_byte", bits}});
  loss_sum_ = 0;
  loss_count_ = 0;
  validated_at_ = watch_.seconds();
}

int LmRun::train() {
  const InterruptFlag interrupt;
  if (!training_.quiet) {
    fmt::print("{} parameters, {}, {} bytes to train on, {} held out\n", model_.parameter_count(),
               model_.config().attention.name(), text_.training().size(), text_.held_out().size());
    std::fflush(stdout);
  }
  while (share() < 1 && !interrupt.raised()) {
    step();
    progress_.show(optimizer_.steps(), training_.steps.value_or(0), "steps");
    if (optimizer_.steps() % training_.validate_every == 0 && share() < 1) {
      validate(/*last=*/false);
      save();
    }
  }
  if (interrupt.raised()) {
    save();
    progress_.clear();
    fmt::print("interrupted after step {}{}\n", optimizer_.steps(),
               training_.checkpoint.empty() ? "" : ", saved: --resume goes on");
    return kExitInterrupted;
  }
  save();
  validate(/*last=*/true);
  return kExitOk;
}

}  // namespace

int train_lm(const LmTraining& training, JsonLines& json) {
  return LmRun(training, json).train();
}

}  // namespace elwise::tools
