#include "models/classifier.h"

#include <algorithm>
#include <cmath>

#include "autograd/gradcheck.h"
#include "core/random.h"
#include "ops/elementwise.h"
#include "ops/loss.h"
#include "ops/view.h"
#include "tests/support/op_test.h"

namespace elwise::models {
namespace {

using testing::check_close;
using testing::check_error;
using testing::kF64Tolerance;
using testing::test_device;
using testing::Values;
using testing::values_of;

const std::vector<std::string> kMechanisms{"sa", "sa-tiled", "la", "aft", "ea", "ea-2", "ea-6", "none"};

ClassifierConfig tiny(const std::string& attention, Pooling pooling, SeriesEmbedding embedding) {
  return {.inputs = 2,
          .classes = 3,
          .positions = 5,
          .attention = nn::Mechanism::parse(attention),
          .hidden = 8,
          .layers = 2,
          .heads = 2,
          .intermediate = 12,
          .dropout = 0.1,
          .embedding = embedding,
          .pooling = pooling,
          .options = {.dtype = DType::f64, .device = test_device()}};
}

/// A model in eval(), the same for the same config.
struct Model : Classifier {
  explicit Model(const ClassifierConfig& config) : Classifier((manual_seed(3), config)) { eval(); }
};

/// Two series of 5 and 3 rows, padded to `length`.
struct Padded {
  Tensor x, key_mask;
};
Padded two_series(int64_t length) {
  Values values(static_cast<size_t>(2 * length * 2), 0);
  std::vector<bool> visible(static_cast<size_t>(2 * length), false);
  for (int64_t row = 0; row < 2; ++row) {
    for (int64_t i = 0; i < (row == 0 ? 5 : 3); ++i) {
      visible[static_cast<size_t>(row * length + i)] = true;
      for (int64_t j = 0; j < 2; ++j) {
        values[static_cast<size_t>((row * length + i) * 2 + j)] =
            std::sin(static_cast<double>(row * 31 + i * 7 + j * 3));
      }
    }
  }
  return {to(from_vector(values, {2, length, 2}), test_device()),
          to(from_vector(visible, {2, length}), test_device())};
}

}  // namespace

TEST_CASE(
    "classifier: a padded batch gives what each series alone gives (mean), and rows do not mix (flatten)") {
  for (const std::string& name : kMechanisms) {
    CAPTURE(name);
    for (const SeriesEmbedding embedding : {SeriesEmbedding::conv, SeriesEmbedding::linear}) {
      ClassifierConfig config = tiny(name, Pooling::mean, embedding);
      config.positions = 9;
      const Model model(config);
      const Padded padded = two_series(9);
      const Values together = values_of(model.forward(padded.x, padded.key_mask));
      for (int64_t row = 0; row < 2; ++row) {
        const Tensor alone = slice(slice(padded.x, 0, row, row + 1), 1, 0, row == 0 ? 5 : 3);
        check_close({together.begin() + row * 3, together.begin() + row * 3 + 3},
                    values_of(model.forward(alone)), kF64Tolerance, name);
      }
      const Model flat(tiny(name, Pooling::flatten, embedding));
      const Padded full = two_series(5);
      const Values both = values_of(flat.forward(full.x, full.key_mask));
      const Values second = values_of(flat.forward(slice(full.x, 0, 1, 2), slice(full.key_mask, 0, 1, 2)));
      check_close({both.begin() + 3, both.end()}, second, kF64Tolerance, name);
    }
  }
}

TEST_CASE("classifier: gradients of the whole model, by central differences") {
  for (const std::string name : {"sa", "ea-6", "none"}) {
    for (const Pooling pooling : {Pooling::flatten, Pooling::mean}) {
      for (const SeriesEmbedding embedding : {SeriesEmbedding::conv, SeriesEmbedding::linear}) {
        ClassifierConfig config = tiny(name, pooling, embedding);
        config.hidden = 4;
        config.layers = 1;
        config.intermediate = 3;
        config.options = {.dtype = DType::f64};
        const Model model(config);
        const Padded series = two_series(5);
        const Tensor labels = from_vector(std::vector<int64_t>{2, 0}, {2});
        // gradcheck moves the elements of its inputs in place, and these are the model's.
        const auto loss = [&](const std::vector<Tensor>&) {
          return cross_entropy(model.forward(on_host(series.x), on_host(series.key_mask)), labels);
        };
        const GradcheckResult result = gradcheck(loss, model.parameters());
        CHECK_MESSAGE(result.passed, name << ": " << result.message);
      }
    }
  }
}

TEST_CASE("classifier: the convolution is PyTorch's Conv1d with circular padding") {
  ClassifierConfig config = tiny("none", Pooling::flatten, SeriesEmbedding::conv);
  config.hidden = 16;
  const Model model(config);
  const auto parameters = model.named_parameters();
  REQUIRE(parameters.front().first == "tokens.weight");
  CHECK(parameters.front().second.shape() == Shape{16, 6});
  for (const auto& [name, parameter] : parameters) CHECK(name != "tokens.bias");
  // The first row's token, before it meets the others, depends on the last row: its neighbour on the circle.
  // Weights [hidden, (before, row, after) x inputs]: only the row before counts, and `none` keeps rows apart.
  const Tensor weight = parameters.front().second;
  Values only_before(16 * 6, 0);
  for (size_t i = 0; i < 16; ++i) only_before[i * 6 + i % 2] = 1;
  Tensor target = weight.detach();
  target.copy_from(to(from_vector(only_before, {16, 6}), test_device()));
  const Padded series = two_series(5);
  const Tensor first = slice(series.x, 0, 0, 1);
  Values turned = values_of(first);
  std::rotate(turned.begin(), turned.end() - 2, turned.end());  // each row is the one that stood before it
  Values only_row(16 * 6, 0);
  for (size_t i = 0; i < 16; ++i) only_row[i * 6 + 2 + i % 2] = 1;
  const Values before = values_of(model.forward(first));
  target.copy_from(to(from_vector(only_row, {16, 6}), test_device()));
  check_close(values_of(model.forward(to(from_vector(turned, {1, 5, 2}), test_device()))), before,
              kF64Tolerance, "turned");
}

TEST_CASE("classifier: initial values: PyTorch's, Kaiming's for the convolution, scaled projections") {
  ClassifierConfig config = tiny("ea-6", Pooling::flatten, SeriesEmbedding::conv);
  config.inputs = 12;
  config.hidden = 128;
  config.intermediate = 256;
  config.heads = 8;
  const Model model(config);
  config.projection_scale = 10;
  const Model scaled(config);
  const auto plain = model.named_parameters(), large = scaled.named_parameters();
  REQUIRE(plain.size() == large.size());
  int64_t projections = 0;
  for (size_t i = 0; i < plain.size(); ++i) {
    const std::string& name = plain[i].first;
    CAPTURE(name);
    const Values values = values_of(plain[i].second);
    double largest = 0, squares = 0;
    for (const double value : values) {
      largest = std::max(largest, std::fabs(value));
      squares += value * value;
    }
    const double deviation = std::sqrt(squares / static_cast<double>(values.size()));
    if (name == "tokens.weight") {
      CHECK(deviation == doctest::Approx(std::sqrt(2.0 / 36)).epsilon(0.03));
    } else if (name.ends_with("dense.weight") || name.ends_with("value.weight")) {
      CHECK(largest <= 1 / std::sqrt(static_cast<double>(plain[i].second.size(1))));
      CHECK(deviation ==
            doctest::Approx(1 / std::sqrt(3.0 * static_cast<double>(plain[i].second.size(1)))).epsilon(0.05));
    }
    const bool is_projection =
        name.find("query") != std::string::npos || name.find("key") != std::string::npos;
    projections += is_projection ? 1 : 0;
    const Values other = values_of(large[i].second);
    for (size_t j = 0; j < values.size(); ++j) CHECK(other[j] == (is_projection ? 10 : 1) * values[j]);
  }
  CHECK(projections == 2 * 2 * 2);  // weight and bias of query and key in two layers
}

TEST_CASE("classifier: errors") {
  const Model flat(tiny("sa", Pooling::flatten, SeriesEmbedding::conv));
  const Model mean(tiny("sa", Pooling::mean, SeriesEmbedding::conv));
  const auto series = [](const Shape& shape) {
    return zeros(shape, {.dtype = DType::f64, .device = test_device()});
  };
  check_error(
      [&] {
        flat.forward(series({1, 5, 3}));
      },
      "classifier: expected x [batch, length, 2], got [1, 5, 3]");
  check_error([&] { flat.forward(series({5, 2})); }, "classifier: expected x [batch, length, 2], got [5, 2]");
  check_error([&] { flat.forward(series({1, 4, 2})); }, "classifier: expected 5 rows, got 4");
  check_error([&] { mean.forward(series({1, 6, 2})); }, "classifier: expected at most 5 rows, got 6");
  const Tensor mask = full({1, 4}, 1, {.dtype = DType::boolean, .device = test_device()});
  check_error(
      [&] {
        mean.forward(series({1, 5, 2}), mask);
      },
      "classifier: expected key_mask [1, 5], got [1, 4]");
  ClassifierConfig empty = tiny("sa", Pooling::mean, SeriesEmbedding::conv);
  empty.classes = 0;
  check_error([&] { Classifier model(empty); },
              "classifier: expected positive sizes, got 2 inputs, 0 classes and 5 positions");
}

}  // namespace elwise::models
