// Trains a causal byte-level language model on a text file, with any attention mechanism, and reports its
// bits per byte on the held-out end of the text.

#include <fmt/core.h>

#include <filesystem>
#include <string>

#include "core/parallel.h"
#include "models/config.h"
#include "tools/console.h"
#include "tools/lm_training.h"
#include "tools/model_options.h"

namespace elwise::tools {
namespace {

struct Options {
  std::string attention = "ea-6";
  DecoderOptions decoder = {.positions = "sinusoidal"};
  std::string device = "cpu";
  std::string dtype = "f32";
  std::string json;
  int threads = num_threads();
  LmTraining training = {.model = {.vocabulary = kByteVocabulary,
                                   .hidden = 192,
                                   .layers = 6,
                                   .heads = 4,
                                   .intermediate = 768,
                                   .dropout = 0,
                                   .attention_dropout = 0,
                                   .initializer_deviation = 0.1}};
};

void add_model_options(CLI::App& app, Options& options) {
  models::BertConfig& model = options.training.model;
  const auto count = positive_number();
  app.add_option("--attention", options.attention,
                 "sa, sa-tiled, la, aft, ea, ea-N or ea-series-composed-N (N even, 0 .. 16), none")
      ->capture_default_str();
  app.add_option("--layers", model.layers, "layers")->check(count)->capture_default_str();
  app.add_option("--hidden", model.hidden, "hidden size")->check(count)->capture_default_str();
  app.add_option("--heads", model.heads, "heads of sa and la")->check(count)->capture_default_str();
  app.add_option("--intermediate", model.intermediate, "size between the two feed-forward products")
      ->check(count)
      ->capture_default_str();
  app.add_option("--length", options.training.length,
                 "bytes that the model sees at a time: its positions. Short windows learn faster")
      ->check(count)
      ->capture_default_str();
  add_decoder_options(app, options.decoder, model);
}

void add_options(CLI::App& app, Options& options) {
  LmTraining& training = options.training;
  const auto count = positive_number();
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  app.add_option("--text", training.text, "file to train on; its last 5 % are held out")->required();
  add_model_options(app, options);
  app.add_option("--batch", training.batch, "windows of --length bytes in a step")
      ->check(count)
      ->capture_default_str();
  app.add_option("--steps", training.steps, "end after so many steps")->check(count);
  app.add_option("--minutes", training.minutes, "end after so much time")->check(count);
  app.add_option(
         "--learning-rate", training.learning_rate,
         "of AdamW at its highest: it rises over --warmup of the run (of steps or minutes) and falls to 0 "
         "along a cosine")
      ->check(count)
      ->capture_default_str();
  app.add_option("--warmup", training.warmup, "share of the run over which the learning rate rises")
      ->check(CLI::Range(0.0, 0.9))
      ->capture_default_str();
  app.add_option("--weight-decay", training.weight_decay, "of AdamW")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--clip", training.clip, "largest joint norm of the gradients; 0: any, nothing is clipped")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--validate-every", training.validate_every,
                 "steps between validations, on an eighth of what is held out, and checkpoints; all of it "
                 "counts at the end")
      ->check(count)
      ->capture_default_str();
  app.add_option("--checkpoint", training.checkpoint, "folder to save the model and the run to");
  app.add_flag("--resume", training.resume,
               "go on from --checkpoint; with the same options as before and --steps, bit for bit");
  app.add_option("--seed", training.seed, "of parameters and windows")->capture_default_str();
  app.add_option("--device", options.device, "cpu, cuda or cuda:N")->capture_default_str();
  add_dtype(app, options.dtype);
  app.add_option("--threads", options.threads, "CPU threads")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--json", options.json,
                 "write one JSON object per validation to this file (--resume adds to it)");
  app.add_flag("--quiet", training.quiet, "print the last validation only");
}

/// Checks what CLI11 cannot, and fills in the model. Throws UsageError.
void finish(Options& options) {
  LmTraining& training = options.training;
  models::BertConfig& model = training.model;
  Device device;
  try {
    device = parse_device(options.device);
    model.attention = nn::Mechanism::parse(options.attention);
  } catch (const Error& error) {
    throw UsageError(error.what());
  }
  if (device == kMeta) throw UsageError("device: nothing is trained on meta; expected cpu or cuda");
  if (!training.steps && !training.minutes) throw UsageError("expected --steps or --minutes");
  if (training.resume && training.checkpoint.empty())
    throw UsageError("resume: expected --checkpoint beside it");
  if (!training.resume && std::filesystem::exists(training.checkpoint / "checkpoint.json")) {
    throw UsageError(fmt::format("checkpoint: {} holds one; expected --resume or another folder",
                                 training.checkpoint.string()));
  }
  if (model.hidden % model.heads != 0) {
    throw UsageError(fmt::format("hidden: {} is not divisible by {} heads", model.hidden, model.heads));
  }
  check_available(device);
  finish_decoder(options.decoder, model);
  model.positions = training.length;
  model = model.for_length(training.length);
  model.options = {.dtype = parse_dtype(options.dtype), .device = device};
  set_num_threads(options.threads);
}

}  // namespace
}  // namespace elwise::tools

int main(int argc, char** argv) {
  using namespace elwise::tools;
  CLI::App app("Trains a causal byte-level language model on a text file.", "train_lm");
  Options options;
  add_options(app, options);
  return run_program(app, argc, argv, [&] {
    finish(options);
    JsonLines json(options.json, /*append=*/options.training.resume);
    return train_lm(options.training, json);
  });
}
