// Figure 3 of arXiv 2501.05730: exp(x) and its Taylor polynomials, beside how the products 2qk of a language
// model that train_lm has trained are distributed, and how many of them lie where a polynomial is not close.

#include <fmt/core.h>

#include <string>
#include <vector>

#include "core/parallel.h"
#include "models/config.h"
#include "nn/checkpoint.h"
#include "tools/byte_text.h"
#include "tools/console.h"
#include "tools/json_lines.h"
#include "tools/plot_script.h"
#include "tools/taylor_products.h"

namespace elwise::tools {
namespace {

constexpr double kTolerance = 0.01;

struct Options {
  std::string checkpoint, text, json, plot;
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
                 "folder that train_lm --checkpoint wrote, with attention ea or ea-N")
      ->required();
  app.add_option("--text", options.text, "file whose held-out last 5 % the model reads")->required();
  app.add_option("--windows", options.windows, "pieces of the text, each as long as the model's positions")
      ->check(count)
      ->capture_default_str();
  app.add_option("--seed", options.seed, "of the windows' places")->capture_default_str();
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
    std::filesystem::create_directories(options.plot);
    options.json = (std::filesystem::path(options.plot) / "taylor.json").string();
  }
  set_num_threads(options.threads);
}

std::string percent(double share) {
  return fmt::format("{:.3g} %", 100 * share);
}

int run(Options& options) {
  finish(options);
  models::Decoder model(models::load_config(options.checkpoint));
  nn::load_checkpoint(options.checkpoint, model);
  model.eval();
  const models::BertConfig& config = model.config();
  using Kind = nn::Mechanism::Kind;
  const Kind kind = config.attention.kind;
  ELWISE_CHECK(
      kind == Kind::ea || kind == Kind::ea_series || kind == Kind::ea_series_composed,
      "plot_taylor: expected a model with attention ea or ea-N, whose weights are exp(2 q k) of each "
      "channel; ",
      options.checkpoint, " has ", config.attention.name());
  const ByteText text(options.text, config.positions);
  Generator places(options.seed);

  const ProductHistogram none(options.limit, options.bins, options.orders, kTolerance);
  std::vector<ProductHistogram> layers(static_cast<size_t>(config.layers), none);
  for (int64_t window = 0; window < options.windows; ++window) {
    const ByteBatch bytes = random_windows(text.held_out(), 1, config.positions, kCpu, places);
    const auto products = queries_and_keys(model, bytes.tokens);
    for (size_t i = 0; i < layers.size(); ++i) layers[i].add(products[i].first, products[i].second);
  }

  JsonLines json(options.json);
  std::vector<std::string> header = {"layer", "products", "least 2qk", "most 2qk"};
  for (const int order : options.orders) header.push_back(fmt::format("outside, order {}", order));
  Table table(header);
  const auto report = [&](const ProductHistogram& histogram, const nlohmann::ordered_json& layer) {
    nlohmann::ordered_json line = {{"attention", config.attention.name()}, {"layer", layer}};
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
