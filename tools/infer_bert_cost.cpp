// What generating a token costs with each attention mechanism: latency and memory. Figure 5 of
// arXiv 2501.05730.

#include <fmt/core.h>

#include <algorithm>
#include <deque>
#include <filesystem>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/parallel.h"
#include "tools/console.h"
#include "tools/generation_cost.h"
#include "tools/json_lines.h"
#include "tools/model_options.h"
#include "tools/plot_script.h"

namespace elwise::tools {
namespace {

struct Options {
  std::vector<std::string> attentions = {"ea-2", "ea-6", "sa"};
  std::vector<int64_t> lengths = {16, 64, 256};
  std::vector<int64_t> batches = {1};
  std::vector<int64_t> positions;  // steps at these instead of whole generations
  std::string device = "cpu";
  std::string dtype = "f32";
  std::string memory_budget;
  std::string json;
  std::string plot;  // a folder
  int64_t steps = 21;
  int threads = num_threads();
  uint64_t seed = 0;
  bool profile = false;
  bool quiet = false;
  models::BertConfig model;
};

void add_options(CLI::App& app, Options& options) {
  const auto count = positive_number();
  const auto add_list = [&](const char* name, auto& values, const char* help) {
    return app.add_option(name, values, help)->take_all()->delimiter(',')->capture_default_str();
  };
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  add_list("--attention", options.attentions, kAttentionHelp);
  add_list("--batch", options.batches, "batch sizes, comma-separated")->check(count);
  add_list("--length", options.lengths, "numbers of tokens to generate, comma-separated")->check(count);
  add_list("--position", options.positions,
           "time single steps with so many tokens before them instead, comma-separated: the state is filled "
           "without computing (caches with random keys and values), and the steps of all positions, batch "
           "sizes and attentions take turns, each behind a measurement of the memory's speed")
      ->check(count);
  app.add_option("--steps", options.steps, "with --position: measured steps of each")
      ->check(count)
      ->capture_default_str();
  app.add_option("--device", options.device,
                 "cpu, cuda or cuda:N, or meta: exact memory of any size, nothing is run")
      ->capture_default_str();
  add_dtype(app, options.dtype);
  add_size_options(app, options.model);
  app.add_option("--threads", options.threads, "CPU threads")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--seed", options.seed, "of parameters and tokens")->capture_default_str();
  app.add_option("--memory-budget", options.memory_budget,
                 "most memory to use, such as 24GiB; what needs more is reported, not run (default on cpu: "
                 "what it has left)");
  app.add_option("--json", options.json, "write one JSON object per measurement to this file");
  app.add_option("--plot", options.plot,
                 "draw the measurements as PNG and SVG into this folder (needs python3-matplotlib); without "
                 "--json they are kept there too");
  app.add_flag("--profile", options.profile,
               "with --position: print the time of each kernel, and its share of what the machine could do");
  app.add_flag("--quiet", options.quiet, "print the table only");
}

/// Checks what CLI11 cannot. Throws UsageError.
void finish(const CLI::App& app, Options& options) {
  finish_model(options.model, options.dtype, options.device);
  for (const std::string& name : options.attentions) parse_attention(name);
  const bool steps_alone = !options.positions.empty();
  if (steps_alone && app.count("--length") > 0) {
    throw UsageError("position: single steps have no generated length; expected no --length");
  }
  if (steps_alone && options.model.options.device == kMeta) {
    throw UsageError(
        "position: nothing runs on meta, so a step takes no time; expected --device cpu or cuda");
  }
  if (!steps_alone && app.count("--steps") > 0) {
    throw UsageError("steps: whole generations are timed once; expected --position beside it");
  }
  if (!steps_alone && options.profile)
    throw UsageError("profile: single steps are profiled; expected --position beside it");
  for (auto* values : {&options.lengths, &options.positions}) {
    std::ranges::sort(*values);
    values->erase(std::unique(values->begin(), values->end()), values->end());
  }
  set_num_threads(options.threads);
  if (!options.memory_budget.empty())
    set_memory_limit(options.model.options.device, parse_bytes(options.memory_budget));
  if (options.plot.empty()) return;
  make_plot_folder(options.plot);
  if (options.json.empty()) options.json = std::filesystem::path(options.plot) / "generation.json";
}

std::string number_or_dash(const std::optional<double>& value, const char* format) {
  return value ? fmt::format(fmt::runtime(format), *value) : "-";
}

/// What a run collects.
struct Report {
  JsonLines json;
  Table table;
  uint64_t seed;
  InterruptFlag interrupt = {};
  int status = kExitOk;
  int64_t measurements = 0;

  /// A point of the curves whose crossings are told: latency and memory over positions, of a batch size.
  struct Curve {
    std::vector<double> x, ms, bytes;
  };
  std::map<int64_t, std::map<std::string, Curve>> curves = {};
  std::string profiles = {};

  void add(nlohmann::ordered_json line, std::vector<std::string> row, int64_t x) {
    line["seed"] = seed;
    json.write(line);
    table.add(std::move(row));
    Curve& curve = curves[line["batch"]][line["attention"]];
    curve.x.push_back(static_cast<double>(x));
    if (line["ms_per_token"].is_number()) curve.ms.push_back(line["ms_per_token"]);
    curve.bytes.push_back(line["state_bytes"]);
    ++measurements;
  }

  /// The rest goes on without it.
  void fails(const std::string& what, const Error& error) {
    const bool memory = dynamic_cast<const OutOfMemoryError*>(&error) != nullptr;
    fmt::print(stderr, "infer_bert_cost: {}{}: {}\n", what, memory ? " does not fit" : "", error.what());
    status = kExitFailure;
  }
};

/// "from position 130 on", or why not.
std::string crossing_text(const std::vector<double>& x, const std::vector<double>& sa,
                          const std::vector<double>& other, const char* better) {
  const auto at = crossing(x, sa, other);
  if (!at) return fmt::format("not {} up to {:.0f} tokens", better, x.back());
  if (*at == x.front())
    return fmt::format("{} at all of {:.0f} .. {:.0f} tokens", better, x.front(), x.back());
  return fmt::format("{} from about {:.0f} tokens on", better, *at);
}

/// Says where other mechanisms' curves fall below SA's.
void print_crossings(const Report& report) {
  for (const auto& [batch, curves] : report.curves) {
    const auto sa = curves.find("sa");
    if (sa == curves.end()) continue;
    for (const auto& [name, curve] : curves) {
      if (name == "sa" || curve.x != sa->second.x) continue;
      std::string text = crossing_text(curve.x, sa->second.bytes, curve.bytes, "smaller");
      if (!curve.ms.empty())
        text = crossing_text(curve.x, sa->second.ms, curve.ms, "faster") + ", its state " + text;
      else
        text = "state " + text;
      fmt::print("{} against sa, batch {}: {}\n", name, batch, text);
    }
  }
}

models::BertConfig with_attention(const Options& options, const std::string& name, int64_t tokens) {
  models::BertConfig config = options.model;
  config.attention = nn::Mechanism::parse(name);
  return config.for_length(tokens);
}

void add_costs(const GenerationTimer& timer, Report& report) {
  const GenerationModel& model = timer.model();
  for (const GenerationCost& cost : timer.costs()) {
    report.add(to_json(model, cost),
               {model.config().attention.name(), std::to_string(cost.batch), std::to_string(cost.length),
                number_or_dash(cost.ms_per_token, "{:.2f}"), number_or_dash(cost.last_step_ms, "{:.2f}"),
                number_or_dash(cost.total_ms, "{:.0f}"), format_bytes(cost.state_bytes),
                format_bytes(model.weight_bytes()), format_bytes(cost.peak_bytes)},
               cost.length);
  }
}

/// Generates with all models, a token of each in turn.
void generate_in_turn(const std::deque<GenerationModel>& models, int64_t batch, const Options& options,
                      Report& report) {
  std::list<GenerationTimer> timers;
  const auto fails = [&](const GenerationModel& model, const Error& error) {
    report.fails(fmt::format("{} batch {}", model.config().attention.name(), batch), error);
  };
  for (const GenerationModel& model : models) {
    try {
      timers.emplace_back(model, batch, options.lengths);
    } catch (const OutOfMemoryError& error) {
      fails(model, error);
    }
  }
  ProgressLine progress(!options.quiet);
  for (int64_t step = 0; step < options.lengths.back() && !report.interrupt.raised(); ++step) {
    progress.show(step, options.lengths.back(), fmt::format("tokens of batch {}", batch));
    for (auto timer = timers.begin(); timer != timers.end();) {
      try {
        timer->step();
        ++timer;
      } catch (const OutOfMemoryError& error) {
        progress.clear();
        fails(timer->model(), error);
        add_costs(*timer, report);
        timer = timers.erase(timer);
      }
    }
  }
  for (const GenerationTimer& timer : timers) add_costs(timer, report);
}

/// Generates with some attentions, one batch size after the other.
void measure_generations(const std::vector<std::string>& attentions, const Options& options, Report& report) {
  std::deque<GenerationModel> models;
  for (const std::string& name : attentions) {
    try {
      models.emplace_back(with_attention(options, name, options.lengths.back()), options.seed);
    } catch (const Error& error) {
      report.fails(name, error);
    }
  }
  for (const int64_t batch : options.batches) {
    if (!report.interrupt.raised()) generate_in_turn(models, batch, options, report);
  }
}

/// The attentions take turns, so that a machine's drift does not fall on one of them. On meta nothing is
/// timed, and only one of them needs to fit at a time.
void measure_lengths(const Options& options, Report& report) {
  if (options.model.options.device != kMeta) return measure_generations(options.attentions, options, report);
  for (const std::string& name : options.attentions) measure_generations({name}, options, report);
}

/// A model of each attention, and its steps at all positions and batch sizes.
struct Positions {
  std::deque<GenerationModel> models;
  std::vector<std::unique_ptr<PositionTimer>> timers;

  Positions(const Options& options, Report& report) {
    for (const std::string& name : options.attentions) {
      std::string what = name;
      try {
        // A step for the cache to grow in, then the measured ones.
        models.emplace_back(with_attention(options, name, options.positions.back() + options.steps + 1),
                            options.seed);
        for (const int64_t batch : options.batches) {
          for (const int64_t position : options.positions) {
            if (report.interrupt.raised()) return;
            what = fmt::format("{} batch {} position {}", name, batch, position);
            timers.push_back(std::make_unique<PositionTimer>(models.back(), batch, position));
          }
        }
      } catch (const Error& error) {
        report.fails(what, error);
      }
    }
  }
};

/// Times steps at positions, in turn.
void measure_positions(const Options& options, Report& report) {
  const Positions positions(options, report);
  RooflineMeter meter(options.model.options.device);
  {
    ProgressLine progress(!options.quiet);
    for (int64_t step = 0; step < options.steps && !report.interrupt.raised(); ++step) {
      progress.show(step, options.steps, "rounds of steps");
      for (const auto& timer : positions.timers) timer->time_step(meter, options.profile);
    }
  }
  for (const auto& timer : positions.timers) {
    const StepCost cost = timer->cost();
    const GenerationModel& model = timer->model();
    if (cost.steps == 0) continue;
    if (options.profile) {
      report.profiles += fmt::format("\n{}, batch {}, position {}\n{}", model.config().attention.name(),
                                     cost.batch, cost.position, profile_text(cost.profile));
    }
    report.add(to_json(model, cost),
               {model.config().attention.name(), std::to_string(cost.batch), std::to_string(cost.position),
                number_or_dash(cost.ms_per_token, "{:.2f}"), number_or_dash(cost.weight_floor_ms, "{:.2f}"),
                number_or_dash(cost.floor_ratio, "{:.2f}"), format_bytes(cost.state_bytes)},
               cost.position);
  }
}

int run(const CLI::App& app, Options& options) {
  finish(app, options);
  const bool steps_alone = !options.positions.empty();
  Report report{.json = JsonLines(options.json),
                .table = steps_alone ? Table({"attention", "batch", "position", "ms/token", "weight floor ms",
                                              "/ floor", "state"})
                                     : Table({"attention", "batch", "length", "ms/token", "last ms",
                                              "total ms", "state", "weights", "peak"}),
                .seed = options.seed};
  if (!options.quiet) {
    fmt::print("BERT generating: {} layers, hidden {}, {} on {}, {} threads\n", options.model.layers,
               options.model.hidden, options.dtype, options.device, num_threads());
  }
  steps_alone ? measure_positions(options, report) : measure_lengths(options, report);
  fmt::print("{}", report.table.text());
  fmt::print("{}", report.profiles);
  if (!options.quiet) {
    print_crossings(report);
    if (steps_alone) {
      fmt::print(
          "times: medians of {} steps; weight floor: to read the weights once, as fast as memory was "
          "just before each step\n",
          options.steps);
    }
  }
  if (report.interrupt.raised()) return kExitInterrupted;
  if (!options.plot.empty() && report.measurements > 0) {
    std::fflush(stdout);
    run_plot_script("plot_cost.py", options.json, options.plot);
    if (!options.quiet) fmt::print("plotted into {}\n", options.plot);
  }
  return report.status;
}

}  // namespace
}  // namespace elwise::tools

int main(int argc, char** argv) {
  using namespace elwise::tools;
  CLI::App app("Measures what generating tokens costs with each attention mechanism.", "infer_bert_cost");
  Options options;
  add_options(app, options);
  return run_program(app, argc, argv, [&] { return run(app, options); });
}
