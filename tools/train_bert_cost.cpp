// What a BERT training step costs with each attention mechanism: time, memory, arithmetic. Section 4.2 of
// arXiv 2501.05730.

#include <fmt/core.h>

#include <filesystem>
#include <string>
#include <vector>

#include "core/parallel.h"
#include "ops/matmul.h"
#include "tools/console.h"
#include "tools/cost_measurement.h"
#include "tools/cost_sweep.h"
#include "tools/longest_length.h"
#include "tools/model_options.h"
#include "tools/plot_script.h"

namespace elwise::tools {
namespace {

/// Full EA takes time that grows with the square of the length, channel by channel: the default run leaves it
/// out above this.
constexpr int64_t kDefaultFullEaLength = 512;

// What the sweeps go over by default.
const std::vector<int64_t> kMetaLengths = {128, 256, 512, 1024, 2048, 4096, 8192, 16384};
const std::vector<int64_t> kRunLengths = {128, 256, 512, 1024, 2048};
const std::vector<int64_t> kBsLBatches = {1, 2, 4, 8, 16, 32, 64, 128, 256};

struct Options {
  std::vector<std::string> attentions = {"ea-2", "ea-6", "ea", "sa"};
  std::vector<int64_t> lengths = {128, 512};
  std::vector<int64_t> batches = {1};
  std::string device = "cpu";
  std::string dtype = "f32";
  std::string memory_budget;
  std::string json;
  std::string sweep;  // memory, bs-l, throughput, or empty
  std::string plot;   // a folder
  int64_t confirmations = 1;
  std::vector<int> threads = {num_threads()};
  bool quiet = false;
  bool no_matmul_floor = false;
  bool tf32 = false;
  CostRequest request;  // what all configurations share
};

void add_sweep_options(CLI::App& app, Options& options) {
  app.add_option(
         "--sweep", options.sweep,
         "one panel of the paper's figure 4: memory over lengths (on meta, 128 .. 16384); bs-l, the "
         "longest sequence per batch size (1 .. 256) that fits --memory-budget (on meta; with --device "
         "cpu or cuda some points are run as well); throughput over lengths (on cpu, 128 .. 2048). "
         "--attention, "
         "--batch, --seq-len and --device change what is gone over; products are not timed alone")
      ->check(CLI::IsMember({"memory", "bs-l", "throughput"}));
  app.add_option("--confirm", options.confirmations,
                 "with --sweep bs-l --device cpu or cuda: points of each attention to run, those with the "
                 "fewest FLOPs")
      ->check(positive_number())
      ->capture_default_str();
  app.add_option("--plot", options.plot,
                 "draw the measurements as PNG and SVG into this folder (needs python3-matplotlib); without "
                 "--json they are kept there too");
}

void add_options(CLI::App& app, Options& options) {
  CostRequest& request = options.request;
  models::BertConfig& model = request.model;
  const auto count = positive_number();
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  app.add_option("--attention", options.attentions, kAttentionHelp)
      ->take_all()
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--seq-len", options.lengths,
                 "sequence lengths, comma-separated; above 8192 positions are sinusoidal")
      ->take_all()
      ->delimiter(',')
      ->check(count)
      ->capture_default_str();
  app.add_option("--batch", options.batches, "batch sizes, comma-separated")
      ->take_all()
      ->delimiter(',')
      ->check(count)
      ->capture_default_str();
  app.add_option("--device", options.device,
                 "cpu, cuda or cuda:N, or meta: exact memory and FLOPs of any size, nothing is run")
      ->capture_default_str();
  add_dtype(app, options.dtype);
  app.add_flag("--tf32", options.tf32, "on a GPU: let matrix products round f32 operands to TF32");
  app.add_flag("--causal", model.causal, "a token sees only itself and what stands before it");
  add_size_options(app, model);
  app.add_option("--steps", request.steps, "measured steps per configuration")
      ->check(count)
      ->capture_default_str();
  app.add_option("--warmup", request.warmup, "steps before measuring")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--learning-rate", request.learning_rate, "of AdamW")->check(count)->capture_default_str();
  app.add_option("--threads", options.threads, "CPU threads, comma-separated")
      ->take_all()
      ->delimiter(',')
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--seed", request.seed, "of parameters and data")->capture_default_str();
  app.add_flag("--checkpoint-activations", request.checkpoint_layers,
               "recompute each layer's activations in backward");
  app.add_flag("--step-in-backward", request.step_in_backward,
               "step each parameter in backward, as soon as its gradient is complete, and free the gradient; "
               "backward's time then includes the optimizer's");
  app.add_option("--memory-budget", options.memory_budget,
                 "most memory to use, such as 24GiB; what needs more is reported, not run (default on cpu: "
                 "what it has left)");
  app.add_option("--text", request.text,
                 "train on this file's bytes (default: synthetic tokens, Zipf's law)");
  app.add_option("--json", options.json, "write one JSON object per measurement to this file");
  app.add_flag("--no-matmul-floor", options.no_matmul_floor, "do not time the step's matrix products alone");
  app.add_flag("--profile", options.request.profile,
               "print the time of each kernel, and its share of what the machine could do");
  app.add_flag("--quiet", options.quiet, "print the table only");
  add_sweep_options(app, options);
}

/// What --sweep changes where the user has chosen nothing. Throws UsageError for what does not go with it.
void apply_sweep(const CLI::App& app, Options& options) {
  const auto chosen = [&](const char* option) { return app.count(option) > 0; };
  const bool bs_l = options.sweep == "bs-l";
  if (!options.sweep.empty() && !chosen("--device") && options.sweep != "throughput") options.device = "meta";
  const bool runs = options.device != "meta";
  if (options.sweep == "throughput" && options.device == "meta") {
    throw UsageError("sweep: nothing runs on meta, so it has no throughput; expected --device cpu or cuda");
  }
  if (bs_l && chosen("--seq-len")) {
    throw UsageError("sweep: bs-l looks for the lengths; expected no --seq-len");
  }
  if (chosen("--confirm") && !(bs_l && runs)) {
    throw UsageError("confirm: expected --sweep bs-l --device cpu (or cuda) beside it");
  }
  if (bs_l && options.threads.size() > 1) {
    throw UsageError("sweep: bs-l asks what fits, with any number of threads; expected one number of them");
  }
  if (bs_l && runs && !chosen("--memory-budget")) {
    throw UsageError("sweep: bs-l on a device runs steps that need all of --memory-budget; expected one");
  }
  if (options.sweep.empty()) return;
  if (!chosen("--seq-len")) options.lengths = runs ? kRunLengths : kMetaLengths;
  if (bs_l && !chosen("--batch")) options.batches = kBsLBatches;
  if (bs_l && !chosen("--steps")) options.request.steps = 1;
  options.no_matmul_floor = true;
}

/// Checks what CLI11 cannot, and fills in what the configurations share. Throws UsageError.
void finish(const CLI::App& app, Options& options) {
  apply_sweep(app, options);
  finish_model(options.request.model, options.dtype, options.device);
  for (const std::string& name : options.attentions) parse_attention(name);
  options.request.matmul_floor = !options.no_matmul_floor;
  set_allow_tf32(options.tf32);
  if (!options.memory_budget.empty())
    set_memory_limit(options.request.model.options.device, parse_bytes(options.memory_budget));
  if (!options.plot.empty()) {
    make_plot_folder(options.plot);
    const std::string name = (options.sweep.empty() ? "cost" : options.sweep) + ".json";
    if (options.json.empty()) options.json = std::filesystem::path(options.plot) / name;
  }
}

/// One request per attention, batch size and number of threads.
std::vector<CostRequest> requests_without_length(const Options& options) {
  std::vector<CostRequest> result;
  for (const int64_t batch : options.batches) {
    for (const std::string& name : options.attentions) {
      for (const int threads : options.threads) {
        result.push_back(options.request);
        result.back().model.attention = nn::Mechanism::parse(name);
        result.back().batch = batch;
        result.back().threads = threads;
      }
    }
  }
  return result;
}

/// One request per length, batch size, attention and number of threads.
std::vector<CostRequest> configurations(const Options& options, bool all_attentions) {
  std::vector<CostRequest> result;
  for (const int64_t length : options.lengths) {
    for (const CostRequest& request : requests_without_length(options)) {
      const bool slow =
          request.model.attention.kind == nn::Mechanism::Kind::ea && length > kDefaultFullEaLength;
      if (slow && !all_attentions && request.model.options.device == kCpu) continue;
      result.push_back(with_length(request, length));
    }
  }
  return result;
}

int run(const CLI::App& app, Options& options) {
  finish(app, options);
  CostRun run = {.json = JsonLines(options.json), .sweep = options.sweep, .quiet = options.quiet};
  if (!options.quiet) {
    fmt::print("BERT training steps: {} layers, hidden {}, {} on {}\n", options.request.model.layers,
               options.request.model.hidden, options.dtype, options.device);
  }
  int status;
  if (options.sweep == "bs-l") {
    const int64_t budget =
        options.memory_budget.empty() ? memory_limit(kCpu) : parse_bytes(options.memory_budget);
    status = find_longest_lengths(requests_without_length(options), budget, options.confirmations, run);
  } else {
    status = measure_all(configurations(options, app.count("--attention") > 0), run);
    if (!options.quiet && options.request.model.options.device != kMeta) {
      fmt::print("times: medians of {} steps{}\n", options.request.steps,
                 options.request.matmul_floor ? "; / floor: forward + backward over the time of the step's "
                                                "matrix products alone"
                                              : "");
    }
  }
  if (run.interrupt.raised()) return kExitInterrupted;
  if (!options.plot.empty() && run.measurements > 0) {
    std::fflush(stdout);
    run_plot_script("plot_cost.py", options.json, options.plot);
    if (!options.quiet) fmt::print("plotted into {}\n", options.plot);
  }
  return status;
}

}  // namespace
}  // namespace elwise::tools

int main(int argc, char** argv) {
  using namespace elwise::tools;
  CLI::App app("Measures what a BERT training step costs with each attention mechanism.", "train_bert_cost");
  Options options;
  add_options(app, options);
  return run_program(app, argc, argv, [&] { return run(app, options); });
}
