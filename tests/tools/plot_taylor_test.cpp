#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <string>

#include "autograd/grad_mode.h"
#include "core/random.h"
#include "models/config.h"
#include "nn/checkpoint.h"
#include "ops/ea.h"
#include "ops/ea_series.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "ops/norm.h"
#include "tests/support/figures.h"
#include "tests/support/op_test.h"
#include "tests/support/run_program.h"
#include "tests/support/temporary_folder.h"
#include "tools/byte_text.h"
#include "tools/taylor_products.h"

namespace elwise::testing {
namespace {

using tools::ProductHistogram;

Run taylor(const std::string& arguments) {
  return run_command(std::string(ELWISE_TOOLS_DIR) + "/plot_taylor " + arguments);
}

/// All 2 q_ic k_jc, when causal those with j <= i.
std::vector<double> products_of(const Tensor& q, const Tensor& k, bool causal = true) {
  const Values queries = values_of(q), keys = values_of(k);
  const auto length = static_cast<size_t>(q.size(1)), channels = static_cast<size_t>(q.size(2));
  std::vector<double> result;
  for (size_t b = 0; b < static_cast<size_t>(q.size(0)); ++b) {
    for (size_t i = 0; i < length; ++i) {
      for (size_t j = 0; j < (causal ? i + 1 : length); ++j) {
        for (size_t c = 0; c < channels; ++c) {
          result.push_back(2 * queries[(b * length + i) * channels + c] *
                           keys[(b * length + j) * channels + c]);
        }
      }
    }
  }
  return result;
}

/// Compares a histogram with the products themselves.
void check_histogram(const nlohmann::json& histogram, const std::vector<double>& products) {
  CHECK(histogram["products"] == products.size());
  CHECK(histogram["minimum"] == *std::min_element(products.begin(), products.end()));
  CHECK(histogram["maximum"] == *std::max_element(products.begin(), products.end()));
  const double low = histogram["bin_low"], width = histogram["bin_width"];
  const auto within = [&](double from, double to) {
    return std::count_if(products.begin(), products.end(), [&](double x) { return x >= from && x < to; });
  };
  const size_t bins = histogram["counts"].size();
  const double high = low + width * static_cast<double>(bins);
  CHECK(histogram["below"] == within(-INFINITY, low));
  CHECK(histogram["above"] == within(high, INFINITY));
  int64_t counted = 0;
  for (size_t i = 0; i < bins; ++i) {
    const double from = low + width * static_cast<double>(i);
    const int64_t count = histogram["counts"][i];
    // A product at an edge may be rounded into either bin.
    CHECK(count >= within(from + 1e-9, from + width - 1e-9));
    CHECK(count <= within(from - 1e-9, from + width + 1e-9));
    counted += count;
  }
  CHECK(counted == within(low, high));
  for (const auto& [order, share] : histogram["outside"].items()) {
    int64_t outside = 0;
    for (const double x : products) {
      double term = 1, sum = 1;
      for (int n = 1; n <= std::stoi(order); ++n) sum += term *= x / n;
      outside += std::abs(sum - std::exp(x)) > 0.01 * std::exp(x) ? 1 : 0;
    }
    CHECK(
        share.get<double>() ==
        doctest::Approx(static_cast<double>(outside) / static_cast<double>(products.size())).epsilon(1e-12));
  }
}

/// A tiny decoder all of whose parameters are random.
models::BertConfig tiny_config(const std::string& attention, nn::NormPlacement norm) {
  return {.vocabulary = tools::kByteVocabulary,
          .hidden = 6,
          .layers = 2,
          .heads = 1,
          .intermediate = 5,
          .positions = 9,
          .norm = norm,
          .attention = nn::Mechanism::parse(attention),
          .options = {.dtype = DType::f64}};
}

}  // namespace

TEST_CASE("the interval in which a polynomial is within the tolerance") {
  CHECK(tools::taylor_polynomial(2, 3) == 1 + 3 + 4.5);
  CHECK(tools::taylor_polynomial(4, -2) == doctest::Approx(1 - 2 + 2 - 8.0 / 6 + 16.0 / 24).epsilon(1e-15));
  const tools::Interval constant = tools::accurate_interval(0, 0.01);
  CHECK(constant.low == doctest::Approx(-std::log(1.01)).epsilon(1e-12));
  CHECK(constant.high == doctest::Approx(-std::log(0.99)).epsilon(1e-12));
  double last = 0;
  for (int order = 2; order <= 16; order += 2) {
    const auto [low, high] = tools::accurate_interval(order, 0.01);
    const auto error = [&](double x) {
      return std::abs(tools::taylor_polynomial(order, x) / std::exp(x) - 1);
    };
    for (int i = 0; i <= 1000; ++i) {
      const double x = low + (high - low) * i / 1000;
      CHECK(error(x) < 0.01 + 1e-9);
    }
    for (int i = 1; i <= 1000; ++i) {
      CHECK(error(high + 0.01 * i) > 0.01);
      CHECK(error(low - 0.01 * i) > 0.01);
    }
    CHECK(high > last);
    last = high;
  }
  CHECK_THROWS_WITH_AS(tools::accurate_interval(3, 0.01),
                       "taylor: expected an even order of 0 or more, got 3", Error);
  CHECK_THROWS_WITH_AS(tools::accurate_interval(2, 1), "taylor: expected a tolerance in (0, 1), got 1",
                       Error);
}

TEST_CASE("the histogram of 2qk: every causal pair of every channel") {
  const Tensor q = randn({2, 7, 3}), k = randn({2, 7, 3});
  ProductHistogram histogram(2, 9, {0, 2, 6}, 0.01);
  histogram.add(q, k, /*causal=*/true);
  CHECK(histogram.products() == 2 * 28 * 3);
  check_histogram(histogram.to_json(), products_of(q, k));

  const Tensor more_q = randn({1, 4, 2}), more_k = randn({1, 4, 2});
  ProductHistogram other(2, 9, {0, 2, 6}, 0.01);
  other.add(more_q, more_k, /*causal=*/false);
  histogram.add(other);
  std::vector<double> all = products_of(q, k);
  for (const double x : products_of(more_q, more_k, false)) all.push_back(x);
  check_histogram(histogram.to_json(), all);
  CHECK_THROWS_WITH_AS(histogram.share_outside(4), "products: order 4 was not counted", Error);
  CHECK_THROWS_WITH_AS(histogram.add(q, more_k, true),
                       "products: expected q and k [batch, length, channels], got [2, 7, 3] and [1, 4, 2]",
                       Error);
  CHECK_THROWS_WITH_AS(histogram.add(full({1, 1, 1}, INFINITY), full({1, 1, 1}, 1), true),
                       "products: expected finite queries and keys, got inf", Error);
}

TEST_CASE("queries and keys are those from which the layers compute their outputs") {
  const NoGradGuard inference;
  for (const auto norm : {nn::NormPlacement::pre, nn::NormPlacement::post}) {
    for (const char* attention : {"ea", "ea-2"}) {
      models::Decoder model(tiny_config(attention, norm));
      model.eval();
      const auto named = model.named_parameters();
      for (auto [name, tensor] : named) tensor.copy_from(randn(tensor.shape(), tensor.options()));
      const std::map<std::string, Tensor> parameters(named.begin(), named.end());
      const Tensor tokens = from_vector(std::vector<int64_t>{1, 2, 3, 4, 5, 2, 7, 0, 9, 200}, {2, 5});
      const auto pairs = tools::queries_and_keys(model, tokens);
      REQUIRE(pairs.size() == 2);
      std::vector<Tensor> hidden;
      model.bert().forward({.tokens = tokens, .token_types = {}, .key_mask = {}}, false, &hidden);
      for (size_t layer = 0; layer < 2; ++layer) {
        const std::string prefix = "bert.encoder.layer." + std::to_string(layer) + ".";
        const auto dense = [&](const std::string& name, const Tensor& x) {
          return linear(x, parameters.at(prefix + name + ".weight"), parameters.at(prefix + name + ".bias"));
        };
        const auto normalize = [&](const std::string& name, const Tensor& x) {
          return layer_norm(x, parameters.at(prefix + name + ".LayerNorm.weight"),
                            parameters.at(prefix + name + ".LayerNorm.bias"), model.config().eps);
        };
        const bool pre = norm == nn::NormPlacement::pre;
        const Tensor& x = hidden[layer];
        const Tensor v = dense("attention.self.value", pre ? normalize("attention.output", x) : x);
        const auto& [q, k] = pairs[layer];
        const AttentionOptions causal{.causal = true, .key_mask = {}};
        const Tensor y = std::string(attention) == "ea" ? ea(q, k, v, causal) : ea_series(q, k, v, 2, causal);
        Tensor attended = add(dense("attention.output.dense", y), x);
        if (!pre) attended = normalize("attention.output", attended);
        const Tensor inner = pre ? normalize("output", attended) : attended;
        Tensor out = add(dense("output.dense", gelu(dense("intermediate.dense", inner))), attended);
        if (!pre) out = normalize("output", out);
        const Values expected = values_of(hidden[layer + 1]), got = values_of(out);
        for (size_t i = 0; i < got.size(); ++i) CHECK(got[i] == doctest::Approx(expected[i]).epsilon(1e-9));
      }
    }
  }
  const models::Decoder none(tiny_config("none", nn::NormPlacement::pre));
  CHECK_THROWS_WITH_AS(tools::queries_and_keys(none, from_vector(std::vector<int64_t>{1}, {1, 1})),
                       "products: attention none has no queries and keys", Error);
}

TEST_CASE("plot_taylor reports the products of a checkpoint, layer by layer") {
  const TemporaryFolder folder;
  std::string words;
  for (int i = 0; i < 60; ++i) words += "element by element, " + std::to_string(i * i) + ". ";
  const auto text = folder.write("text.txt", words);
  const auto save = [&](const std::string& name, const std::string& attention) {
    models::BertConfig config = tiny_config(attention, nn::NormPlacement::pre);
    config.initializer_deviation = 1;
    const models::Decoder model(config);
    models::save_config(folder / name, model.config());
    nn::Adam optimizer(model, AdamKind::adam);
    nn::save_checkpoint(folder / name, model, optimizer);
  };
  save("model", "ea-6");
  save("sa", "sa");
  const std::string from = "--text " + text.string() + " --checkpoint ";
  const std::string json = (folder / "taylor.json").string();
  const Run run = taylor(from + (folder / "model").string() +
                         " --windows 3 --seed 5 --orders 2,6 --limit 3 --bins 12 --json " + json);
  CHECK_MESSAGE(run.status == 0, run.output);
  const auto lines = json_lines(json);
  REQUIRE(lines.size() == 3);

  models::Decoder model(models::load_config(folder / "model"));
  nn::load_checkpoint(folder / "model", model);
  model.eval();
  const tools::ByteText bytes(text, 9);
  Generator places(5);
  std::vector<std::vector<double>> products(3);
  for (int window = 0; window < 3; ++window) {
    const auto batch = tools::random_windows(bytes.held_out(), 1, 9, kCpu, places);
    const auto pairs = tools::queries_and_keys(model, batch.tokens);
    for (size_t layer = 0; layer < 2; ++layer) {
      for (const double x : products_of(pairs[layer].first, pairs[layer].second)) {
        products[layer].push_back(x);
        products[2].push_back(x);
      }
    }
  }
  for (size_t i = 0; i < 3; ++i) {
    CHECK(lines[i]["attention"] == "ea-6");
    CHECK(lines[i]["layer"] == (i < 2 ? nlohmann::json(i) : nlohmann::json()));
    check_histogram(lines[i], products[i]);
  }
  CHECK_MESSAGE(
      run.output.find("order 2 is within 1 % of exp(x) for x in -0.358 .. 0.436") != std::string::npos,
      run.output);
  CHECK_MESSAGE(run.output.find("all") != std::string::npos, run.output);

  const std::tuple<std::string, int, std::string> cases[] = {
      {"--text a", 2, "--checkpoint is required"},
      {from + (folder / "model").string() + " --orders 3", 2,
       "orders: expected even numbers in 2 .. 16, got 3"},
      {from + (folder / "model").string() + " --windows 0", 2, "--windows"},
      {from + (folder / "sa").string(), 1, "expected a model with attention ea or ea-N"},
      {from + (folder / "gone").string(), 1, "gone holds no run that a program of Elwise saved"},
      {"--checkpoint " + (folder / "model").string(), 2, "text: expected a file for the model of train_lm"},
  };
  for (const auto& [arguments, status, message] : cases) {
    const Run bad = taylor(arguments);
    CAPTURE(arguments);
    CHECK_MESSAGE(bad.status == status, bad.output);
    CHECK_MESSAGE(bad.output.find(message) != std::string::npos, bad.output);
    CHECK_MESSAGE(count_lines(bad.output) == 1, bad.output);
  }
  if (!can_draw()) return;
  const std::string figures = folder / "figures";
  CHECK(taylor(from + (folder / "model").string() + " --windows 1 --plot " + figures).status == 0);
  check_figure(figures, "taylor", {"order 2", "order 6", "2qk", "all layers"});
  const Run bad = run_command("python3 " ELWISE_SOURCE_DIR "/tools/plot_taylor.py " +
                              folder.write("bad.json", "{}").string() + " --out " + figures);
  CHECK_MESSAGE(bad.status == 1, bad.output);
  CHECK_MESSAGE(bad.output.find("bad.json:1: not a histogram of plot_taylor: attention is missing") !=
                    std::string::npos,
                bad.output);
}

TEST_CASE("plot_taylor reads the runs of every program that trains, with their data") {
  const TemporaryFolder folder;
  const auto at = [&](const std::string& name) { return (folder / name).string(); };
  std::string series = "@problemName Steps\n@univariate true\n@classLabel true a b\n@data\n";
  for (int i = 0; i < 10; ++i) series += i % 2 == 0 ? "1,2,3,1:a\n" : "3,1,2:b\n";
  std::string rows = "date,OT\n";
  for (int i = 0; i < 90; ++i) {
    rows += "2021-01-0" + std::to_string(1 + i / 24) + " " + (i % 24 < 10 ? "0" : "") +
            std::to_string(i % 24) + ":00:00," + std::to_string(i % 7) + "\n";
  }
  const std::string train = folder.write("steps.ts", series).string(),
                    csv = folder.write("rows.csv", rows).string();
  const std::string other = folder.write("other.ts", series + "1,1:a\n").string();
  const std::string model =
      " --attention ea-2,none --layers 2 --hidden 8 --heads 1 --intermediate 8 --epochs 1 --quiet";
  const std::string classifier = " --train " + train + " --test " + train, forecaster = " --data " + csv;
  // With the pairs that a window of the test data has: 10 and 6 of causal ones, all of series of 4 and 3
  // values.
  const std::tuple<std::string, std::string, std::string, int64_t> programs[] = {
      {"classifier", classifier, "ea-2-seed-0", 5 * (16 + 9)},
      {"forecaster", forecaster + " --length 4 --horizon 2 --marks hour,weekday", "ea-2-horizon-2-seed-0",
       10 * 10},
      {"recall", " --length 8 --pairs 2 --vocab 8 --batches 1 --batch 4 --test 10 --validation 4",
       "ea-2-length-8-pairs-2-seed-0", 10 * 36}};
  for (const auto& [name, data, run, pairs] : programs) {
    CAPTURE(name);
    const Run trained = run_command(std::string(ELWISE_TOOLS_DIR) + "/train_" + name + data + model +
                                    " --checkpoint " + at(name));
    REQUIRE_MESSAGE(trained.status == 0, trained.output);
    const std::string files = name == "recall" ? "" : name == "classifier" ? classifier : forecaster;
    const Run read =
        taylor("--checkpoint " + at(name) + "/" + run + files + " --windows 10 --json " + at("json"));
    CHECK_MESSAGE(read.status == 0, read.output);
    const auto lines = json_lines(folder / "json");
    REQUIRE(lines.size() == 3);
    CHECK(lines[2]["attention"] == "ea-2");
    CHECK(lines[1]["products"] == pairs * 8);
    CHECK(lines[2]["products"] == 2 * pairs * 8);
  }
  const std::string run = "--checkpoint " + at("classifier");
  const std::tuple<std::string, int, std::string> cases[] = {
      {run + classifier, 1,
       "holds several runs: expected the folder of one, such as " + at("classifier") + "/"},
      {run + "/ea-2-seed-0", 2, "train: expected the file that train_classifier read"},
      {run + "/none-seed-0" + classifier, 1, "expected a model with attention ea or ea-N"},
      {run + "/ea-2-seed-0 --test " + train + " --train " + other, 1,
       "the run was trained on data with training_series 10, the files have 11"},
      {"--checkpoint " + at("forecaster") + "/ea-2-horizon-2-seed-0", 2,
       "data: expected the file that train_forecaster read"},
  };
  for (const auto& [arguments, status, message] : cases) {
    const Run bad = taylor(arguments);
    CAPTURE(arguments);
    CHECK_MESSAGE(bad.status == status, bad.output);
    CHECK_MESSAGE(contains(bad.output, message), bad.output);
    CHECK_MESSAGE(count_lines(bad.output) == 1, bad.output);
  }
}

}  // namespace elwise::testing
