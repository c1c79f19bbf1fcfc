#include "ops/dropout.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/parallel.h"
#include "ops/elementwise.h"
#include "tests/support/op_variants.h"

namespace elwise::testing {
namespace {

constexpr uint64_t kSeed = 20250105;
constexpr int64_t kLargeCount = 1'000'003;

/// A generator at the start of stream kSeed, moved on by a number of words.
Generator generator_after(uint64_t words = 0) {
  Generator generator(kSeed);
  generator.reserve(words);
  return generator;
}

/// What dropout makes of element i, by the rule in ops/dropout_kernels.h.
double naive_dropout(double x, double p, const RandomStream& stream, uint64_t i) {
  return static_cast<double>(uniform01(stream.word(i))) >= p ? x / (1 - p) : 0;
}

TEST_CASE("dropout: element i is kept by word i of the stream, in backward too") {
  for (const double p : {0.0, 0.1, 0.5, 0.9}) {
    std::vector<Shape> shapes{{}, {0}, {3, 33, 1027}};
    for (const int64_t size : kOddSizes) shapes.push_back({size});
    for (const Shape& shape : shapes) {
      check_op_variants({.name = detail::concatenate("dropout ", p, " ", shape),
                         .op =
                             [=](const std::vector<Tensor>& in) {
                               Generator generator = generator_after(8);
                               return dropout(in[0], p, generator);
                             },
                         .inputs = {uniform(shape)},
                         .naive =
                             [=](const std::vector<Values>& in) {
                               Values y = in[0];
                               const RandomStream stream = generator_after(8).state();
                               for (size_t i = 0; i < y.size(); ++i) y[i] = naive_dropout(y[i], p, stream, i);
                               return y;
                             }});
    }
  }
}

TEST_CASE("dropout keeps 1 - p of the elements and the mean") {
  for (const double p : {0.01, 0.1, 0.5, 0.9}) {
    for (const DType dtype : test_dtypes()) {
      Generator generator(kSeed);
      const Tensor x = ones({kLargeCount}, {.dtype = dtype, .device = test_device()}).set_requires_grad();
      const Tensor y = dropout(x, p, generator);
      double kept = 0;
      const Values values = values_of(y);
      for (const double value : values) kept += value != 0 ? 1 : 0;
      const double n = static_cast<double>(kLargeCount), deviation = std::sqrt(p * (1 - p) / n);
      CHECK(std::fabs(kept / n - (1 - p)) < 4 * deviation);
      y.backward(ones_like(y));
      CHECK(values_of(x.grad()) == values);  // the same mask, the same scale
    }
  }
}

TEST_CASE("dropout draws anew at every call") {
  Generator generator(kSeed);
  const Tensor x = ones({1027}, {.device = test_device()});
  const Values first = values_of(dropout(x, 0.5, generator));
  CHECK(generator.state().offset == 257);  // 1027 words, in whole blocks of four
  CHECK(values_of(dropout(x, 0.5, generator)) != first);
  generator.set_state({kSeed, 0});
  CHECK(values_of(dropout(x, 0.5, generator)) == first);
  manual_seed(kSeed);
  CHECK(values_of(dropout(x, 0.5)) == first);
}

TEST_CASE("dropout of 0 is x itself and draws nothing") {
  Generator generator(kSeed);
  const Tensor x = to(uniform({3}), test_device());
  CHECK(dropout(x, 0, generator).is_same(x));
  CHECK(generator.state().offset == 0);
}

TEST_CASE("meta moves the generator on as the CPU and a GPU do") {
  for (const int64_t size : kOddSizes) {
    Generator generator(kSeed), meta_generator(kSeed);
    const Tensor x = ones({size}, {.device = test_device()}), meta = to(x, kMeta);
    dropout(x, 0.5, generator);
    fill_normal(x, 0, 1, generator);
    dropout(meta, 0.5, meta_generator);
    fill_normal(meta, 0, 1, meta_generator);
    CHECK(generator.state().offset == meta_generator.state().offset);
  }
}

/// One of the two fills: what it draws from words 2j and 2j + 1.
struct FillCase {
  std::string name;
  std::function<void(const Tensor&, Generator&)> fill;
  std::function<double(float even, float odd, bool is_odd)> naive;
};

std::vector<FillCase> fill_cases() {
  const auto box_muller = [](float even, float odd, bool is_odd) {
    const double radius = std::sqrt(-2 * std::log(1 - static_cast<double>(even)));
    const double angle = 2 * std::numbers::pi * static_cast<double>(odd);
    return radius * (is_odd ? std::sin(angle) : std::cos(angle));
  };
  const auto chosen = [](float even, float odd, bool is_odd) {
    return static_cast<double>(is_odd ? odd : even);
  };
  return {{"fill_uniform", [](const Tensor& x, Generator& generator) { fill_uniform(x, 0, 1, generator); },
           chosen},
          {"fill_uniform -3..0.5",
           [](const Tensor& x, Generator& generator) { fill_uniform(x, -3, 0.5, generator); },
           [=](float even, float odd, bool is_odd) { return -3 + 3.5 * chosen(even, odd, is_odd); }},
          {"fill_normal", [](const Tensor& x, Generator& generator) { fill_normal(x, 0, 1, generator); },
           box_muller},
          {"fill_normal 5, 0.25",
           [](const Tensor& x, Generator& generator) { fill_normal(x, 5, 0.25, generator); },
           [=](float even, float odd, bool is_odd) { return 5 + 0.25 * box_muller(even, odd, is_odd); }}};
}

TEST_CASE("fill_uniform and fill_normal: element i comes from word i, for any thread count") {
  std::vector<int64_t> sizes(std::begin(kOddSizes), std::end(kOddSizes));
  sizes.insert(sizes.end(), {0, 50'003});
  const int threads = num_threads();
  for (const FillCase& each : fill_cases()) {
    for (const int64_t size : sizes) {
      const RandomStream stream = generator_after(12).state();
      Values expected;
      for (uint64_t i = 0; i < static_cast<uint64_t>(size); ++i) {
        const uint64_t even = i / 2 * 2;
        expected.push_back(
            each.naive(uniform01(stream.word(even)), uniform01(stream.word(even + 1)), i % 2 == 1));
      }
      for (const DType dtype : test_dtypes()) {
        Values first;
        for (const int count : {1, 2, 3}) {
          set_num_threads(count);
          const Tensor buffer = full({size + 2}, 7, {.dtype = dtype, .device = test_device()});
          const Tensor x = buffer.alias({size}, 1);
          const int64_t version = x.storage()->version();
          Generator generator = generator_after(12);
          each.fill(x, generator);
          CHECK(x.storage()->version() > version);
          CHECK(generator.state().offset == 3 + static_cast<uint64_t>(size + 3) / 4);
          const Values drawn = values_of(x), all = values_of(buffer);
          if (count == 1) first = drawn;
          CHECK(drawn == first);
          CHECK((all.front() == 7 && all.back() == 7));
          check_close(drawn, expected, tolerance_of(dtype), each.name);
        }
      }
    }
  }
  set_num_threads(threads);
}

/// Checks the mean of f(x) over `values` against `expected`, within 4 deviations of f(x).
void check_mean(const Values& values, const std::function<double(double)>& f, double expected,
                const char* what) {
  double sum = 0, squares = 0;
  for (const double value : values) {
    sum += f(value);
    squares += f(value) * f(value);
  }
  const double n = static_cast<double>(values.size()), mean = sum / n;
  const double deviation = std::sqrt((squares / n - mean * mean) / n);
  CHECK_MESSAGE(std::fabs(mean - expected) < 4 * deviation, what, ": ", mean, ", expected ", expected);
}

TEST_CASE("moments of the uniform and the normal distribution") {
  for (const DType dtype : {DType::f32, DType::f64}) {
    Generator generator(kSeed);
    const TensorOptions options{.dtype = dtype, .device = test_device()};
    const Values flat = values_of(rand({kLargeCount}, options, generator));
    CHECK(*std::min_element(flat.begin(), flat.end()) >= 0);
    CHECK(*std::max_element(flat.begin(), flat.end()) < 1);
    check_mean(
        flat, [](double u) { return u; }, 0.5, "uniform: mean");
    check_mean(
        flat, [](double u) { return (u - 0.5) * (u - 0.5); }, 1.0 / 12, "uniform: variance");
    check_mean(
        flat, [](double u) { return u < 0.125 ? 1 : 0; }, 0.125, "uniform: lowest eighth");

    const Values normal = values_of(randn({kLargeCount}, options, generator));
    for (const auto& [power, moment] : {std::pair{1, 0.0}, {2, 1.0}, {3, 0.0}, {4, 3.0}, {6, 15.0}}) {
      check_mean(
          normal, [=](double x) { return std::pow(x, power); }, moment, "normal: moment");
    }
    check_mean(
        normal, [](double x) { return std::fabs(x) < 1 ? 1 : 0; }, std::erf(std::numbers::sqrt2 / 2),
        "normal: within one deviation");
    Values neighbours;
    for (size_t i = 0; i + 1 < normal.size(); ++i) neighbours.push_back(normal[i] * normal[i + 1]);
    check_mean(
        neighbours, [](double x) { return x; }, 0, "normal: correlation of neighbours");
  }
}

TEST_CASE("errors") {
  const Tensor x = uniform({3}), index = arange(3);
  check_error([&] { dropout(x, 1); }, "dropout: expected 0 <= p < 1, got 1");
  check_error([&] { dropout(x, -0.5); }, "dropout: expected 0 <= p < 1, got -0.5");
  check_error([&] { dropout(x, NAN); }, "dropout: expected 0 <= p < 1, got nan");
  check_error([&] { dropout(index, 0.5); }, "dropout: expected x of dtype f32, f64 or bf16, got i64");
  check_error([&] { fill_uniform(index, 0, 1); },
              "fill_uniform: expected x of dtype f32, f64 or bf16, got i64");
  check_error([&] { fill_normal(index, 0, 1); },
              "fill_normal: expected x of dtype f32, f64 or bf16, got i64");
}

}  // namespace
}  // namespace elwise::testing
