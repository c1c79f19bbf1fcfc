// Text from a byte-level language model that train_lm has trained, in the recurrent form: with EA-series a
// byte costs the same however many came before.

#include <fmt/core.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "core/parallel.h"
#include "models/config.h"
#include "models/decoder.h"
#include "nn/checkpoint.h"
#include "tools/byte_text.h"
#include "tools/console.h"

namespace elwise::tools {
namespace {

struct Options {
  std::string checkpoint;
  std::vector<std::string> prompts;
  std::string device = "cpu";
  int threads = num_threads();
  models::GenerateOptions generate = {.tokens = 200, .sampling = {.temperature = 0.8}};
};

void add_options(CLI::App& app, Options& options) {
  models::SamplingOptions& sampling = options.generate.sampling;
  app.add_option("--checkpoint", options.checkpoint, "folder that train_lm --checkpoint wrote")->required();
  app.add_option("--prompt", options.prompts, "text to go on from; several make one batch")
      ->required()
      ->expected(1)
      ->take_all();
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  app.add_option("--tokens", options.generate.tokens, "bytes to generate for each prompt")
      ->check(positive_number())
      ->capture_default_str();
  app.add_option("--temperature", sampling.temperature, "divides the logits; 0: always the most probable")
      ->capture_default_str();
  app.add_option("--top-k", sampling.top_k, "draw from the k most probable only; 0: from all")
      ->capture_default_str();
  app.add_option("--top-p", sampling.top_p, "draw from the most probable that together reach this share")
      ->capture_default_str();
  app.add_option("--seed", options.generate.seed, "of the draws")->capture_default_str();
  app.add_option("--device", options.device, "cpu, cuda or cuda:N")->capture_default_str();
  app.add_option("--threads", options.threads, "CPU threads")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
}

void print(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

/// Throws UsageError for options that CLI11 cannot check.
Device check(const Options& options) {
  Device device;
  try {
    device = parse_device(options.device);
    models::Sampler{options.generate.sampling};
  } catch (const Error& error) {
    throw UsageError(error.what());
  }
  if (device == kMeta) throw UsageError("device: nothing is generated on meta; expected cpu or cuda");
  for (const std::string& prompt : options.prompts) {
    if (prompt.empty()) throw UsageError("prompt: expected at least one byte");
  }
  check_available(device);
  return device;
}

using Tokens = std::vector<int64_t>;

/// Adds options.tokens new tokens to each text, which may be longer than the model has positions: where these
/// are full, the last half of them is taken up as a new prompt.
void extend(const models::Decoder& model, std::vector<Tokens>& texts, models::GenerateOptions options) {
  const int64_t positions = model.config().positions;
  for (int64_t left = options.tokens; left > 0; left -= options.tokens, ++options.seed) {
    std::vector<Tokens> contexts;
    int64_t longest = 0;
    for (const Tokens& text : texts) {
      const auto size = static_cast<int64_t>(text.size());
      const int64_t kept = size <= positions ? size : std::max<int64_t>(1, positions / 2);
      contexts.emplace_back(text.end() - kept, text.end());
      longest = std::max(longest, kept);
    }
    options.tokens = std::min(left, positions - longest + 1);
    const std::vector<Tokens> added = model.generate(contexts, options);
    for (size_t row = 0; row < texts.size(); ++row) {
      texts[row].insert(texts[row].end(), added[row].begin(), added[row].end());
    }
  }
}

int run(Options& options) {
  const Device device = check(options);
  set_num_threads(options.threads);
  models::Decoder model(models::load_config(options.checkpoint, device));
  nn::load_checkpoint(options.checkpoint, model);
  model.eval();
  std::vector<Tokens> texts;
  for (const std::string& prompt : options.prompts) texts.push_back(byte_tokens(prompt));

  const bool alone = texts.size() == 1;
  if (alone) {
    print(options.prompts[0]);
    options.generate.on_token = [](size_t, int64_t token) {
      print(std::string(1, static_cast<char>(token)));
    };
  }
  extend(model, texts, options.generate);
  for (size_t row = 0; !alone && row < texts.size(); ++row) {
    print(fmt::format("[{}] {}\n", row + 1, std::string(texts[row].begin(), texts[row].end())));
  }
  if (alone) print("\n");
  return kExitOk;
}

}  // namespace
}  // namespace elwise::tools

int main(int argc, char** argv) {
  using namespace elwise::tools;
  CLI::App app("Generates text with a byte-level language model of train_lm.", "generate");
  Options options;
  add_options(app, options);
  return run_program(app, argc, argv, [&] { return run(options); });
}
