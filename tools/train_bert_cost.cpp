// What a BERT training step costs with each attention mechanism: time, memory, arithmetic. Section 4.2 of
// arXiv 2501.05730.

#include <fmt/core.h>

#include <algorithm>
#include <string>
#include <vector>

#include "core/parallel.h"
#include "tools/console.h"
#include "tools/cost_measurement.h"
#include "tools/json_lines.h"

namespace elwise::tools {
namespace {

/// Full EA takes time that grows with the square of the length, channel by channel: the default run leaves it
/// out above this.
constexpr int64_t kDefaultFullEaLength = 512;

struct Options {
  std::vector<std::string> attentions = {"ea-2", "ea-6", "ea", "sa"};
  std::vector<int64_t> lengths = {128, 512};
  std::vector<int64_t> batches = {1};
  std::string device = "cpu";
  std::string dtype = "f32";
  std::string memory_budget;
  std::string json;
  int threads = num_threads();
  bool quiet = false;
  bool no_matmul_floor = false;
  bool attentions_chosen = false;
  CostRequest request;  // what all configurations share
};

void add_options(CLI::App& app, Options& options) {
  CostRequest& request = options.request;
  models::BertConfig& model = request.model;
  const auto count = CLI::PositiveNumber;
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  app.add_option("--attention", options.attentions,
                 "mechanisms, comma-separated: sa, ea, ea-N or ea-series-composed-N (N even, 0 .. 16), none")
      ->take_all()
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--seq-len", options.lengths, "sequence lengths, comma-separated")
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
                 "cpu, or meta: exact memory and FLOPs of any size, nothing is run")
      ->capture_default_str();
  app.add_option("--dtype", options.dtype, "f32 or f64")
      ->check(CLI::IsMember({"f32", "f64"}))
      ->capture_default_str();
  app.add_flag("--causal", model.causal, "a token sees only itself and what stands before it");
  app.add_option("--layers", model.layers, "encoder layers")->check(count)->capture_default_str();
  app.add_option("--hidden", model.hidden, "hidden size")->check(count)->capture_default_str();
  app.add_option("--heads", model.heads, "heads of sa")->check(count)->capture_default_str();
  app.add_option("--intermediate", model.intermediate, "size between the two feed-forward products")
      ->check(count)
      ->capture_default_str();
  app.add_option("--vocab", model.vocabulary, "vocabulary size")->check(count)->capture_default_str();
  app.add_option("--steps", request.steps, "measured steps per configuration")
      ->check(count)
      ->capture_default_str();
  app.add_option("--warmup", request.warmup, "steps before measuring")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--learning-rate", request.learning_rate, "of AdamW")->check(count)->capture_default_str();
  app.add_option("--threads", options.threads, "CPU threads")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--seed", request.seed, "of parameters and data")->capture_default_str();
  app.add_flag("--checkpoint-activations", request.checkpoint_layers,
               "recompute each layer's activations in backward");
  app.add_option("--memory-budget", options.memory_budget,
                 "most memory to use, such as 24GiB; what needs more is reported, not run (default on cpu: "
                 "the machine's)");
  app.add_option("--text", request.text,
                 "train on this file's bytes (default: synthetic tokens, Zipf's law)");
  app.add_option("--json", options.json, "write one JSON object per measurement to this file");
  app.add_flag("--no-matmul-floor", options.no_matmul_floor, "do not time the step's matrix products alone");
  app.add_flag("--profile", options.request.profile,
               "print the time of each kernel, and its share of what the machine could do");
  app.add_flag("--quiet", options.quiet, "print the table only");
}

DType dtype_named(const std::string& name) {
  return name == "f64" ? DType::f64 : DType::f32;
}

/// Checks what CLI11 cannot, and fills in what the configurations share. Throws UsageError.
void finish(Options& options) {
  models::BertConfig& model = options.request.model;
  model.dropout = model.attention_dropout = 0;
  Device device;
  try {
    device = parse_device(options.device);
    for (const std::string& name : options.attentions) nn::Mechanism::parse(name);
  } catch (const Error& error) {
    throw UsageError(error.what());
  }
  if (device.type == DeviceType::cuda)
    throw UsageError("device: this build has no CUDA; expected cpu or meta");
  model.options = {.dtype = dtype_named(options.dtype), .device = device};
  if (model.hidden % model.heads != 0) {
    throw UsageError(fmt::format("hidden: {} is not divisible by {} heads", model.hidden, model.heads));
  }
  options.request.matmul_floor = !options.no_matmul_floor;
  set_num_threads(options.threads);
  if (!options.memory_budget.empty()) set_memory_limit(device, parse_bytes(options.memory_budget));
}

std::vector<CostRequest> configurations(const Options& options) {
  std::vector<CostRequest> result;
  for (const int64_t length : options.lengths) {
    for (const int64_t batch : options.batches) {
      for (const std::string& name : options.attentions) {
        CostRequest request = options.request;
        request.model = request.model.for_length(length);
        request.model.attention = nn::Mechanism::parse(name);
        request.length = length;
        request.batch = batch;
        const bool slow =
            request.model.attention.kind == nn::Mechanism::Kind::ea && length > kDefaultFullEaLength;
        if (slow && !options.attentions_chosen && request.model.options.device == kCpu) continue;
        result.push_back(std::move(request));
      }
    }
  }
  return result;
}

std::string describe(const CostRequest& request) {
  return fmt::format("{} batch {} length {}", request.model.attention.name(), request.batch, request.length);
}

std::string number_or_dash(const std::optional<double>& value, const char* format) {
  return value ? fmt::format(fmt::runtime(format), *value) : "-";
}

std::vector<std::string> table_row(const CostRequest& request, const CostResult& result) {
  return {request.model.attention.name(),
          std::to_string(request.batch),
          std::to_string(request.length),
          number_or_dash(result.step_ms, "{:.0f}"),
          number_or_dash(result.forward_ms, "{:.0f}"),
          number_or_dash(result.backward_ms, "{:.0f}"),
          number_or_dash(result.optimizer_ms, "{:.0f}"),
          number_or_dash(result.tokens_per_s(request), "{:.0f}"),
          number_or_dash(result.floor_ratio(), "{:.2f}"),
          fmt::format("{:.1f}", result.flops / 1e9),
          format_bytes(result.memory.total.peak),
          format_bytes(result.memory[MemoryTag::activations].peak),
          number_or_dash(result.loss_last, "{:.2f}")};
}

int run(Options& options) {
  finish(options);
  JsonLines json(options.json);
  const InterruptFlag interrupt;
  Table table({"attention", "batch", "length", "step ms", "forward", "backward", "optimizer", "tokens/s",
               "/ floor", "GFLOP", "peak", "activations", "loss"});
  int status = kExitOk;
  const std::vector<CostRequest> requests = configurations(options);
  if (!options.quiet) {
    fmt::print("BERT training steps: {} layers, hidden {}, {} on {}, {} threads\n",
               options.request.model.layers, options.request.model.hidden, options.dtype, options.device,
               num_threads());
  }
  for (size_t i = 0; i < requests.size() && !interrupt.raised(); ++i) {
    const CostRequest& request = requests[i];
    ProgressLine progress(!options.quiet);
    const auto show = [&](int64_t step) {
      progress.show(step, request.warmup + request.steps,
                    fmt::format("steps of {} ({} of {})", describe(request), i + 1, requests.size()));
      return !interrupt.raised();
    };
    try {
      show(0);
      const CostResult result = measure_cost(request, show);
      if (result.steps == 0) break;  // interrupted during warm-up
      progress.clear();
      json.write(to_json(request, result));
      table.add(table_row(request, result));
      if (request.profile) fmt::print("{}\n{}\n", describe(request), profile_text(result.profile));
      if (!options.quiet) {
        fmt::print("{}: {} ms a step, peak {}\n", describe(request), number_or_dash(result.step_ms, "{:.0f}"),
                   format_bytes(result.memory.total.peak));
        std::fflush(stdout);
      }
    } catch (const OutOfMemoryError& error) {
      progress.clear();
      fmt::print(stderr, "train_bert_cost: {} does not fit: {}\n", describe(request), error.what());
      status = kExitFailure;
    }
  }
  fmt::print("{}{}", options.quiet ? "" : "\n", table.text());
  if (!options.quiet && options.request.model.options.device != kMeta) {
    fmt::print(
        "times: medians of {} steps; / floor: forward + backward over the time of the step's matrix products "
        "alone\n",
        options.request.steps);
  }
  return interrupt.raised() ? kExitInterrupted : status;
}

}  // namespace
}  // namespace elwise::tools

int main(int argc, char** argv) {
  using namespace elwise::tools;
  CLI::App app("Measures what a BERT training step costs with each attention mechanism.", "train_bert_cost");
  Options options;
  add_options(app, options);
  return run_program(app, argc, argv, [&] {
    options.attentions_chosen = app.count("--attention") > 0;
    return run(options);
  });
}
