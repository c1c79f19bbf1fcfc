#include "tools/experiments/recall_tasks.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <set>

#include "core/error.h"
#include "models/decoder.h"

namespace elwise::tools {
namespace {

using models::kNoTarget;
using Tokens = std::vector<int64_t>;
/// Answers the question at `position`, seeing what a causal model sees.
using Solver = std::function<int64_t(const Tokens& tokens, size_t position)>;

constexpr uint64_t kSeed = 7;

std::vector<RecallExample> examples(const RecallConfig& config, RecallSplit split, uint64_t seed = kSeed,
                                    int64_t count = 200) {
  std::vector<RecallExample> result;
  for (int64_t i = 0; i < count; ++i) result.push_back(recall_example(config, split, seed, i));
  return result;
}

double accuracy(const RecallConfig& config, const Solver& solve) {
  int64_t right = 0, asked = 0;
  for (const RecallExample& example : examples(config, RecallSplit::test, kSeed, 2000)) {
    for (size_t i = 0; i < example.targets.size(); ++i) {
      if (example.targets[i] == kNoTarget) continue;
      ++asked;
      right += solve(example.tokens, i) == example.targets[i] ? 1 : 0;
    }
  }
  CHECK(asked == 2000 * config.pairs);
  return static_cast<double>(right) / static_cast<double>(asked);
}

/// What stood behind the first token like the one asked about.
int64_t successor(const Tokens& tokens, size_t position) {
  const auto first = std::find(tokens.begin(), tokens.end(), tokens[position]);
  return *(first + 1);
}

/// The token of the same rank among those that are neither noise nor marker.
int64_t copied(const Tokens& tokens, size_t position) {
  const auto marker = std::find(tokens.begin(), tokens.end(), tokens[position]);
  Tokens remembered(tokens.begin(), marker);
  std::erase(remembered, 0);
  return remembered[position - static_cast<size_t>(marker - tokens.begin())];
}

const RecallConfig kConfigs[] = {
    {.task = RecallTask::mqar, .length = 64, .pairs = 8, .vocabulary = 40},
    {.task = RecallTask::mqar, .length = 33, .pairs = 8, .vocabulary = 18},  // as narrow as can be
    {.task = RecallTask::copy, .length = 64, .pairs = 10, .vocabulary = 16},
    {.task = RecallTask::induction, .length = 64, .pairs = 1, .vocabulary = 16},
};

}  // namespace

TEST_CASE("mqar: pairs of different keys and values, then each key once, whose target is its value") {
  for (const RecallConfig& config : {kConfigs[0], kConfigs[1]}) {
    const auto pairs = static_cast<size_t>(config.pairs);
    for (const RecallExample& example : examples(config, RecallSplit::training)) {
      const auto& [tokens, targets] = example;
      REQUIRE(tokens.size() == static_cast<size_t>(config.length));
      REQUIRE(targets.size() == tokens.size());
      std::map<int64_t, int64_t> value_of;
      std::set<int64_t> values;
      for (size_t i = 0; i < pairs; ++i) {
        const int64_t key = tokens[2 * i], value = tokens[2 * i + 1];
        CHECK((key >= 1 && key < config.vocabulary / 2));
        CHECK((value >= config.vocabulary / 2 && value < config.vocabulary));
        value_of[key] = value;
        values.insert(value);
      }
      CHECK(value_of.size() == pairs);
      CHECK(values.size() == pairs);
      std::set<int64_t> asked;
      for (size_t i = 0; i < tokens.size(); ++i) {
        const bool query = i >= 2 * pairs && tokens[i] != 0;
        if (query) {
          CHECK(i % 2 == 0);
          CHECK(targets[i] == value_of.at(tokens[i]));
          CHECK(asked.insert(tokens[i]).second);
        } else {
          CHECK(targets[i] == kNoTarget);
        }
      }
      CHECK(asked.size() == pairs);
    }
  }
}

TEST_CASE("mqar: gaps follow the power law") {
  // A single query: place g of 31 has a share of g^(power - 1) / sum.
  for (const double power : {0.01, 1.0}) {
    const RecallConfig config{.length = 64, .pairs = 1, .vocabulary = 64, .power = power};
    constexpr int64_t kCount = 20000;
    constexpr size_t kPlaces = 31;
    std::vector<double> share(kPlaces), expected(kPlaces);
    double sum = 0;
    for (size_t g = 0; g < kPlaces; ++g) sum += expected[g] = std::pow(static_cast<double>(g + 1), power - 1);
    for (const auto& [tokens, targets] : examples(config, RecallSplit::training, kSeed, kCount)) {
      const auto query = std::find_if(targets.begin(), targets.end(), [](int64_t t) { return t >= 0; });
      share[static_cast<size_t>(query - targets.begin() - 2) / 2] += 1.0 / kCount;
    }
    for (size_t g = 0; g < kPlaces; ++g) {
      const double p = expected[g] / sum;
      CHECK(std::abs(share[g] - p) < 5 * std::sqrt(p * (1 - p) / kCount));  // five standard deviations
    }
  }
}

TEST_CASE("copy: scattered tokens, noise, then as many markers whose targets are those tokens in order") {
  const RecallConfig& config = kConfigs[2];
  std::set<int64_t> places, seen;
  for (const auto& [tokens, targets] : examples(config, RecallSplit::training)) {
    const auto markers = static_cast<size_t>(config.length - config.pairs);
    size_t remembered = 0;
    for (size_t i = 0; i < markers; ++i) {
      CHECK(targets[i] == kNoTarget);
      if (tokens[i] == 0) continue;
      CHECK((tokens[i] >= 1 && tokens[i] <= config.vocabulary - 2));
      CHECK(targets[markers + remembered] == tokens[i]);
      ++remembered;
      places.insert(static_cast<int64_t>(i));
      seen.insert(tokens[i]);
    }
    CHECK(remembered == static_cast<size_t>(config.pairs));
    for (size_t i = markers; i < tokens.size(); ++i) CHECK(tokens[i] == config.vocabulary - 1);
  }
  CHECK(places.size() == static_cast<size_t>(config.length - config.pairs));  // every place is used
  CHECK(seen.size() == static_cast<size_t>(possible_answers(config)));
}

TEST_CASE("induction: the special token twice, and what followed the first one is asked at the end") {
  const RecallConfig& config = kConfigs[3];
  std::set<int64_t> places, answers;
  for (const auto& [tokens, targets] : examples(config, RecallSplit::training, kSeed, 1000)) {
    CHECK(std::count(tokens.begin(), tokens.end(), 0) == 2);
    CHECK(tokens.back() == 0);
    const auto first = std::find(tokens.begin(), tokens.end(), 0) - tokens.begin();
    CHECK(targets.back() == tokens[static_cast<size_t>(first + 1)]);
    CHECK(std::count(targets.begin(), targets.end(), kNoTarget) == config.length - 1);
    CHECK(*std::max_element(tokens.begin(), tokens.end()) < config.vocabulary);
    places.insert(first);
    answers.insert(targets.back());
  }
  CHECK(places.size() == static_cast<size_t>(config.length - 2));
  CHECK(answers.size() == static_cast<size_t>(possible_answers(config)));
}

TEST_CASE("an oracle scores 1, one that guesses scores its chance") {
  for (const RecallConfig& config : kConfigs) {
    CAPTURE(name_of(config.task));
    CHECK(accuracy(config, config.task == RecallTask::copy ? Solver(copied) : Solver(successor)) == 1);
    // Always the same answer: right as often as any other.
    const double chance = 1.0 / static_cast<double>(possible_answers(config));
    const int64_t guess = config.vocabulary / 2;
    const double scored = accuracy(config, [&](const Tokens&, size_t) { return guess; });
    const double deviation = std::sqrt(chance * (1 - chance) / static_cast<double>(2000 * config.pairs));
    CHECK(std::abs(scored - chance) < 5 * deviation);
  }
  // A solver that only remembers which values there were cannot tell which key had which.
  const double first_value = accuracy(kConfigs[0], [](const Tokens& tokens, size_t) { return tokens[1]; });
  CHECK(std::abs(first_value - 1.0 / 8) < 1e-12);
}

TEST_CASE("examples depend on seed and index alone, and no sequence is in two splits") {
  for (const RecallConfig& config : kConfigs) {
    std::map<Tokens, RecallSplit> split_of;
    std::set<Tokens> different;
    for (const RecallSplit split : {RecallSplit::training, RecallSplit::validation, RecallSplit::test}) {
      for (const uint64_t seed : {uint64_t{0}, uint64_t{1}}) {
        for (const auto& [tokens, targets] : examples(config, split, seed)) {
          different.insert(tokens);
          CHECK(split_of.emplace(tokens, split).first->second == split);
        }
      }
    }
    CHECK(different.size() > 1190);  // of 1200: chance repeats hardly one
    const RecallExample once = recall_example(config, RecallSplit::test, 3, 1000000);
    const RecallExample again = recall_example(config, RecallSplit::test, 3, 1000000);
    CHECK(once.tokens == again.tokens);
    CHECK(once.targets == again.targets);
    CHECK(once.tokens != recall_example(config, RecallSplit::test, 4, 1000000).tokens);
  }
  // The splits of a task that has few sequences still share none: 6 of length 4 and vocabulary 3 exist at
  // most.
  const RecallConfig tiny{.task = RecallTask::induction, .length = 5, .pairs = 1, .vocabulary = 4};
  std::set<Tokens> training, test;
  for (const auto& example : examples(tiny, RecallSplit::training)) training.insert(example.tokens);
  for (const auto& example : examples(tiny, RecallSplit::test)) test.insert(example.tokens);
  CHECK(training.size() > test.size());
  for (const Tokens& tokens : test) CHECK(training.count(tokens) == 0);
}

TEST_CASE("the same bits everywhere: examples as they were first drawn") {
  CHECK(recall_example({.length = 16, .pairs = 3, .vocabulary = 12}, RecallSplit::training, 1, 0).tokens ==
        Tokens{4, 7, 5, 10, 3, 6, 4, 0, 3, 0, 0, 0, 5, 0, 0, 0});
  CHECK(recall_example({.task = RecallTask::copy, .length = 12, .pairs = 3, .vocabulary = 9},
                       RecallSplit::test, 1, 2)
            .tokens == Tokens{0, 4, 0, 0, 0, 5, 0, 3, 0, 8, 8, 8});
  CHECK(recall_example({.task = RecallTask::induction, .length = 12, .pairs = 1, .vocabulary = 9},
                       RecallSplit::validation, 1, 2)
            .tokens == Tokens{3, 4, 5, 8, 0, 2, 5, 8, 5, 5, 5, 0});
}

TEST_CASE("a batch is the examples of its stream, one a row") {
  const RecallConfig& config = kConfigs[0];
  const RecallBatch batch = recall_batch(config, RecallSplit::training, kSeed, 5, 3);
  CHECK(batch.tokens.shape() == Shape{3, config.length});
  Tokens tokens, targets;
  for (int64_t i = 5; i < 8; ++i) {
    const RecallExample example = recall_example(config, RecallSplit::training, kSeed, i);
    tokens.insert(tokens.end(), example.tokens.begin(), example.tokens.end());
    targets.insert(targets.end(), example.targets.begin(), example.targets.end());
  }
  CHECK(batch.tokens.to_vector<int64_t>() == tokens);
  CHECK(batch.targets.to_vector<int64_t>() == targets);
}

TEST_CASE("names and errors of the recall tasks") {
  for (const RecallTask task : {RecallTask::mqar, RecallTask::copy, RecallTask::induction}) {
    CHECK(parse_recall_task(name_of(task)) == task);
  }
  CHECK_THROWS_WITH_AS(parse_recall_task("sort"), "recall: expected task mqar, copy or induction, got 'sort'",
                       Error);
  const std::pair<RecallConfig, const char*> cases[] = {
      {{.pairs = 0}, "recall: expected 1 pair or more, got 0"},
      {{.length = 31, .pairs = 8}, "recall: mqar of 8 pairs needs a length of 32, got 31"},
      {{.pairs = 8, .vocabulary = 17}, "recall: mqar of 8 pairs needs a vocabulary of 18, got 17"},
      {{.power = 2}, "recall: expected a power in -1 .. 1, got 2"},
      {{.power = NAN}, "recall: expected a power in -1 .. 1, got nan"},
      {{.task = RecallTask::copy, .length = 15, .pairs = 8},
       "recall: copy of 8 pairs needs a length of 16, got 15"},
      {{.task = RecallTask::copy, .vocabulary = 3}, "recall: copy of 4 pairs needs a vocabulary of 4, got 3"},
      {{.task = RecallTask::induction}, "recall: induction asks one question: expected 1 pair, got 4"},
      {{.task = RecallTask::induction, .length = 3, .pairs = 1},
       "recall: induction of 1 pairs needs a length of 4, got 3"},
  };
  for (const auto& [config, message] : cases) {
    CHECK_THROWS_WITH_AS(recall_example(config, RecallSplit::test, 0, 0), message, Error);
  }
  // Two sequences in all cannot fill three splits.
  const RecallConfig tiny{.task = RecallTask::copy, .length = 2, .pairs = 1, .vocabulary = 4};
  int empty_splits = 0;
  for (const RecallSplit split : {RecallSplit::training, RecallSplit::validation, RecallSplit::test}) {
    try {
      recall_example(tiny, split, 0, 0);
    } catch (const Error& error) {
      CHECK(std::string(error.what()).find("too few sequences to hold some back") != std::string::npos);
      ++empty_splits;
    }
  }
  CHECK(empty_splits > 0);
}

}  // namespace elwise::tools
