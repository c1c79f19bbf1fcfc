#include "models/sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/random.h"
#include "tests/support/op_test.h"

namespace elwise::models {
namespace {

using testing::check_error;

/// Probabilities 0.1, 0.4, 0.2, 0.3, in f64 exactly enough.
const std::vector<double> kLogits{std::log(0.1), std::log(0.4), std::log(0.2), std::log(0.3)};

std::vector<int64_t> tokens_of(Sampler sampler, const std::vector<double>& logits = kLogits) {
  std::vector<int64_t> tokens;
  for (const Sampler::Candidate& candidate : sampler.candidates(logits)) tokens.push_back(candidate.token);
  return tokens;
}

std::vector<double> probabilities_of(Sampler sampler, const std::vector<double>& logits = kLogits) {
  std::vector<double> result;
  for (const Sampler::Candidate& candidate : sampler.candidates(logits)) {
    result.push_back(candidate.probability);
  }
  return result;
}

void check_probabilities(const Sampler& sampler, const std::vector<double>& expected) {
  testing::check_close(probabilities_of(sampler), expected, testing::kF64Tolerance, "probabilities");
}

TEST_CASE("at temperature 1 the candidates are the softmax, at others that of the scaled logits") {
  CHECK(tokens_of(Sampler({})) == std::vector<int64_t>{0, 1, 2, 3});
  check_probabilities(Sampler({}), {0.1, 0.4, 0.2, 0.3});
  check_probabilities(Sampler({.temperature = 0.5}), {0.01 / 0.3, 0.16 / 0.3, 0.04 / 0.3, 0.09 / 0.3});
}

TEST_CASE("temperature 0 is greedy, and a low one almost is") {
  CHECK(tokens_of(Sampler({.temperature = 0})) == std::vector<int64_t>{1});
  CHECK(tokens_of(Sampler({.temperature = 0}), {1, 3, 3}) == std::vector<int64_t>{1});  // the first of equals
  for (const double temperature : {1e-3, 1e-9, 1e-300}) {
    Sampler sampler({.temperature = temperature});
    for (const double uniform : {0.0, 0.3, 0.999999}) CHECK(sampler.draw(kLogits, uniform) == 1);
  }
}

TEST_CASE("top-k leaves the k best") {
  CHECK(tokens_of(Sampler({.top_k = 1})) == std::vector<int64_t>{1});
  CHECK(tokens_of(Sampler({.top_k = 3})) == std::vector<int64_t>{1, 3, 2});
  CHECK(tokens_of(Sampler({.top_k = 9})) == std::vector<int64_t>{1, 3, 2, 0});
  check_probabilities(Sampler({.top_k = 2}), {4.0 / 7, 3.0 / 7});
  CHECK(tokens_of(Sampler({.top_k = 2}), {5, 5, 5}) == std::vector<int64_t>{0, 1});  // the first of equals
}

TEST_CASE("top-p leaves the fewest that reach it") {
  CHECK(tokens_of(Sampler({.top_p = 1e-9})) == std::vector<int64_t>{1});
  CHECK(tokens_of(Sampler({.top_p = 0.39})) == std::vector<int64_t>{1});
  CHECK(tokens_of(Sampler({.top_p = 0.41})) == std::vector<int64_t>{1, 3});
  CHECK(tokens_of(Sampler({.top_p = 0.71})) == std::vector<int64_t>{1, 3, 2});
  CHECK(tokens_of(Sampler({.top_p = 0.95})) == std::vector<int64_t>{1, 3, 2, 0});
  check_probabilities(Sampler({.top_p = 0.6}), {4.0 / 7, 3.0 / 7});
  // Of what top-k left: 4 / 7 and 3 / 7.
  CHECK(tokens_of(Sampler({.top_k = 2, .top_p = 0.5})) == std::vector<int64_t>{1});
}

TEST_CASE("drawn tokens are as frequent as they are probable") {
  constexpr int kDraws = 40'000;
  const RandomStream stream{.seed = 5, .offset = 0};
  const std::pair<SamplingOptions, std::vector<double>> cases[] = {
      {{}, {0.1, 0.4, 0.2, 0.3}},
      {{.temperature = 2}, {}},
      {{.top_k = 2}, {0, 4.0 / 7, 0, 3.0 / 7}},
      {{.top_p = 0.8}, {0, 4.0 / 9, 2.0 / 9, 3.0 / 9}}};
  for (auto [options, expected] : cases) {
    if (expected.empty()) {
      for (const double p : {0.1, 0.4, 0.2, 0.3}) {
        expected.push_back(std::sqrt(p) /
                           (std::sqrt(0.1) + std::sqrt(0.4) + std::sqrt(0.2) + std::sqrt(0.3)));
      }
    }
    Sampler sampler(options);
    std::vector<int> counts(kLogits.size());
    for (uint64_t i = 0; i < kDraws; ++i) {
      ++counts[static_cast<size_t>(sampler.draw(kLogits, uniform01(stream.word(i))))];
    }
    for (size_t token = 0; token < counts.size(); ++token) {
      const double p = expected[token], deviation = std::sqrt(p * (1 - p) / kDraws);
      CHECK(std::fabs(counts[token] / double{kDraws} - p) <= 4 * deviation);
    }
  }
}

TEST_CASE("what cannot be drawn is not: tokens of probability 0, at any number") {
  const double never = -std::numeric_limits<double>::infinity();
  for (const SamplingOptions& options :
       {SamplingOptions{}, SamplingOptions{.top_k = 3}, SamplingOptions{.top_p = 0.999999}}) {
    Sampler sampler(options);
    for (const double uniform : {0.0, 0.5, 1 - 0x1p-53}) {
      CHECK(sampler.draw({never, 0, never, never}, uniform) == 1);
    }
  }
  CHECK(Sampler({}).draw(std::vector<double>(1000, 0), 1 - 0x1p-53) == 999);
}

TEST_CASE("errors of sampling") {
  check_error([] { Sampler({.temperature = -1}); }, "sampling: expected a temperature of 0 or more, got -1");
  check_error([] { Sampler({.top_k = -1}); }, "sampling: expected a top-k of 0 (all) or more, got -1");
  check_error([] { Sampler({.top_p = 0}); }, "sampling: expected a top-p above 0, at most 1, got 0");
  check_error([] { Sampler({.top_p = 1.5}); }, "sampling: expected a top-p above 0, at most 1, got 1.5");
  check_error([] { Sampler({}).draw({0, std::nan("")}, 0.5); }, "sampling: the logit of token 1 is NaN");
  check_error([] { Sampler({}).draw({}, 0.5); }, "sampling: expected logits, got none");
}

}  // namespace
}  // namespace elwise::models
