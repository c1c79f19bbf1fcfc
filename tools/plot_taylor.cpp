// Figure 3 of arXiv 2501.05730: exp(x) and its Taylor polynomials, beside how the products 2qk of a model
// that train_lm, train_classifier, train_forecaster or train_recall has trained are distributed, and how many
// of them lie where a polynomial is not close.

#include <fmt/core.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/parallel.h"
#include "models/config.h"
#include "nn/checkpoint.h"
#include "tools/byte_text.h"
#include "tools/console.h"
#include "tools/experiments/random_order.h"
#include "tools/experiments/saved_trial.h"
#include "tools/json_lines.h"
#include "tools/plot_script.h"
#include "tools/taylor_products.h"

namespace elwise::tools {
namespace {

constexpr double kTolerance = 0.01;

struct Options {
  std::string checkpoint, text, json, plot;
  DataFiles files = {};
  std::vector<int> orders = {2, 4, 6, 8};
  int64_t windows = 32;
  int64_t bins = 240;
  double limit = 12;
  uint64_t seed = 0;
  int threads = num_threads();
};

void add_options(CLI::App& app, Options& options) {
  const auto count = positive_number();
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  app.add_option("--checkpoint", options.checkpoint,
                 "folder of a run that train_lm, train_classifier, train_forecaster or train_recall saved, "
                 "with attention ea or ea-N")
      ->required();
  app.add_option("--text", options.text, "for train_lm: file whose held-out last 5 % the model reads");
  app.add_option("--train", options.files.train, "for train_classifier: its files");
  app.add_option("--test", options.files.test, "beside --train");
  app.add_option("--data", options.files.data, "for train_forecaster: its file");
  app.add_option("--windows", options.windows,
                 "pieces of the text, each as long as the model's positions, or test examples")
      ->check(count)
      ->capture_default_str();
  app.add_option("--seed", options.seed, "of the choice of windows")->capture_default_str();
  app.add_option("--orders", options.orders, "of the polynomials, comma-separated and even")
      ->take_all()
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--limit", options.limit, "the histogram covers -limit .. limit")
      ->check(count)
      ->capture_default_str();
  app.add_option("--bins", options.bins, "of the histogram")->check(count)->capture_default_str();
  app.add_option("--threads", options.threads, "CPU threads")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option("--json", options.json, "write a JSON object for each layer and one for all to this file");
  app.add_option("--plot", options.plot,
                 "draw the figure as PNG and SVG into this folder (needs python3-matplotlib); without --json "
                 "the numbers are kept there too");
}

/// Throws UsageError for what CLI11 cannot check.
void finish(Options& options) {
  for (const int order : options.orders) {
    if (order < 2 || order > 16 || order % 2 != 0) {
      throw UsageError(fmt::format("orders: expected even numbers in 2 .. 16, got {}", order));
    }
  }
  if (options.json.empty() && !options.plot.empty()) {
    make_plot_folder(options.plot);
    options.json = (std::filesystem::path(options.plot) / "taylor.json").string();
  }
  set_num_threads(options.threads);
}

std::string percent(double share) {
  return fmt::format("{:.3g} %", 100 * share);
}

/// Where the products come from.
struct Source {
  std::string attention;
  bool causal = true;
  int64_t windows = 0;
  std::function<std::vector<QueriesAndKeys>()> next_window;
};

Source language_model_source(const Options& options) {
  if (options.text.empty()) throw UsageError("text: expected a file for the model of train_lm to read");
  const auto model = std::make_shared<models::Decoder>(models::load_config(options.checkpoint));
  nn::load_checkpoint(options.checkpoint, *model);
  model->eval();
  const int64_t length = model->config().positions;
  const auto text = std::make_shared<const ByteText>(options.text, length);
  const auto places = std::make_shared<Generator>(options.seed);
  return {.attention = model->config().attention.name(), .windows = options.windows, .next_window = [=] {
            return queries_and_keys(*model,
                                    random_windows(text->held_out(), 1, length, kCpu, *places).tokens);
          }};
}

/// Test examples, at random: files may be sorted by class or time.
Source trial_source(const Options& options) {
  SavedTrial saved = load_trial(options.checkpoint, options.files);
  const std::shared_ptr<const Trial> trial = std::move(saved.trial);
  const auto order = std::make_shared<const std::vector<int64_t>>(
      random_order(trial->test_examples(), options.seed, /*stream=*/0));
  return {.attention = saved.attention,
          .causal = saved.causal,
          .windows = std::min(options.windows, trial->test_examples()),
          .next_window = [trial, order, next = order->begin()]() mutable {
            return trial->queries_and_keys(*next++);
          }};
}

void check_attention(const Options& options, const Source& source) {
  using Kind = nn::Mechanism::Kind;
  const Kind kind = nn::Mechanism::parse(source.attention).kind;
  ELWISE_CHECK(
      kind == Kind::ea || kind == Kind::ea_series || kind == Kind::ea_series_composed,
      "plot_taylor: expected a model with attention ea or ea-N, whose weights are exp(2 q k) of each "
      "channel; ",
      options.checkpoint, " has ", source.attention);
}

int run(Options& options) {
  finish(options);
  const bool language_model =
      std::filesystem::exists(std::filesystem::path(options.checkpoint) / "config.json");
  const Source source = language_model ? language_model_source(options) : trial_source(options);
  check_attention(options, source);
  const ProductHistogram none(options.limit, options.bins, options.orders, kTolerance);
  std::vector<ProductHistogram> layers;
  for (int64_t window = 0; window < source.windows; ++window) {
    const std::vector<QueriesAndKeys> products = source.next_window();
    layers.resize(products.size(), none);
    for (size_t i = 0; i < layers.size(); ++i)
      layers[i].add(products[i].first, products[i].second, source.causal);
  }

  JsonLines json(options.json);
  std::vector<std::string> header = {"layer", "products", "least 2qk", "most 2qk"};
  for (const int order : options.orders) header.push_back(fmt::format("outside, order {}", order));
  Table table(header);
  const auto report = [&](const ProductHistogram& histogram, const nlohmann::ordered_json& layer) {
    nlohmann::ordered_json line = {{"attention", source.attention}, {"layer", layer}};
    line.update(histogram.to_json());
    json.write(line);
    std::vector<std::string> row = {
        layer.is_null() ? "all" : layer.dump(), std::to_string(histogram.products()),
        fmt::format("{:.2f}", histogram.minimum()), fmt::format("{:.2f}", histogram.maximum())};
    for (const int order : options.orders) row.push_back(percent(histogram.share_outside(order)));
    table.add(row);
  };
  ProductHistogram all = none;
  for (size_t i = 0; i < layers.size(); ++i) {
    report(layers[i], i);
    all.add(layers[i]);
  }
  report(all, nullptr);
  fmt::print("{}", table.text());
  for (const int order : options.orders) {
    const Interval accurate = accurate_interval(order, kTolerance);
    fmt::print("order {} is within 1 % of exp(x) for x in {:.3f} .. {:.3f}\n", order, accurate.low,
               accurate.high);
  }
  if (!options.plot.empty()) run_plot_script("plot_taylor.py", options.json, options.plot);
  return kExitOk;
}

}  // namespace
}  // namespace elwise::tools

int main(int argc, char** argv) {
  using namespace elwise::tools;
  CLI::App app(
      "Shows where the products 2qk of a trained model lie beside the polynomials that EA-series uses.",
      "plot_taylor");
  Options options;
  add_options(app, options);
  return run_program(app, argc, argv, [&] { return run(options); });
}
