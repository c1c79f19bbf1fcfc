#include "tools/experiments/recall_tasks.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "core/random.h"
#include "models/decoder.h"
#include "ops/elementwise.h"

namespace elwise::tools {
namespace {

constexpr std::pair<RecallTask, const char*> kTaskNames[] = {
    {RecallTask::mqar, "mqar"}, {RecallTask::copy, "copy"}, {RecallTask::induction, "induction"}};

constexpr int64_t kFiller = 0;  // mqar's filler, copy's noise
constexpr int64_t kSpecial = 0;
constexpr int kDraws = 1000;  // before a split is taken to be empty: the odds are below 1e-57

/// Whole numbers, drawn one after another from a stream of their own.
class Draws {
 public:
  /// Stream number `index` of a seed; streams are 2^34 words apart.
  Draws(uint64_t seed, uint64_t index) : stream_{.seed = seed, .offset = index << 32} {}

  /// Uniform in [0, count): 64 bits, so the bias is below count / 2^64.
  int64_t below(int64_t count) {
    const uint64_t bits = uint64_t{stream_.word(used_)} << 32 | stream_.word(used_ + 1);
    used_ += 2;
    return static_cast<int64_t>(bits % static_cast<uint64_t>(count));
  }

  /// `count` different numbers of begin .. end, in random order.
  std::vector<int64_t> distinct(int64_t count, int64_t begin, int64_t end) {
    std::vector<int64_t> all(static_cast<size_t>(end - begin));
    std::iota(all.begin(), all.end(), begin);
    for (int64_t i = 0; i < count; ++i) {
      std::swap(all[static_cast<size_t>(i)], all[static_cast<size_t>(i + below(end - begin - i))]);
    }
    all.resize(static_cast<size_t>(count));
    return all;
  }

 private:
  RandomStream stream_;
  uint64_t used_ = 0;
};

/// `count` different indices of `weights`, one after another, each with its weight's share of what is left.
std::vector<int64_t> weighted_distinct(Draws& draws, int64_t count, std::vector<int64_t> weights) {
  int64_t total = std::accumulate(weights.begin(), weights.end(), int64_t{0});
  std::vector<int64_t> chosen;
  for (int64_t i = 0; i < count; ++i) {
    int64_t left = draws.below(total);
    size_t index = 0;
    while (left >= weights[index]) left -= weights[index++];
    chosen.push_back(static_cast<int64_t>(index));
    total -= std::exchange(weights[index], 0);
  }
  return chosen;
}

/// 2^32 g^(power - 1), g = 1 .. places. Whole numbers: the last bit of a machine's pow() plays no part.
std::vector<int64_t> power_law(int64_t places, double power) {
  std::vector<int64_t> weights;
  for (int64_t gap = 1; gap <= places; ++gap) {
    const int64_t weight = std::llround(0x1p32 * std::pow(static_cast<double>(gap), power - 1));
    weights.push_back(std::max<int64_t>(weight, 1));
  }
  return weights;
}

RecallExample blank(const RecallConfig& config) {
  const auto length = static_cast<size_t>(config.length);
  return {.tokens = std::vector<int64_t>(length, kFiller),
          .targets = std::vector<int64_t>(length, models::kNoTarget)};
}

int64_t first_value(const RecallConfig& config) {
  return config.vocabulary / 2;
}

RecallExample associative_recall(const RecallConfig& config, Draws& draws) {
  RecallExample example = blank(config);
  const auto keys = draws.distinct(config.pairs, kFiller + 1, first_value(config));
  const auto values = draws.distinct(config.pairs, first_value(config), config.vocabulary);
  const int64_t context = 2 * config.pairs;
  const auto gaps =
      weighted_distinct(draws, config.pairs, power_law((config.length - context) / 2, config.power));
  for (size_t i = 0; i < keys.size(); ++i) {
    example.tokens[2 * i] = keys[i];
    example.tokens[2 * i + 1] = values[i];
    const auto query = static_cast<size_t>(context + 2 * gaps[i]);
    example.tokens[query] = keys[i];
    example.targets[query] = values[i];
  }
  return example;
}

RecallExample selective_copying(const RecallConfig& config, Draws& draws) {
  RecallExample example = blank(config);
  const int64_t markers = config.length - config.pairs;
  auto places = draws.distinct(config.pairs, 0, markers);
  std::sort(places.begin(), places.end());
  for (size_t i = 0; i < places.size(); ++i) {
    const int64_t token = kFiller + 1 + draws.below(possible_answers(config));
    const auto marker = static_cast<size_t>(markers) + i;
    example.tokens[static_cast<size_t>(places[i])] = token;
    example.tokens[marker] = config.vocabulary - 1;
    example.targets[marker] = token;
  }
  return example;
}

RecallExample induction_heads(const RecallConfig& config, Draws& draws) {
  RecallExample example = blank(config);
  for (int64_t& token : example.tokens) token = kSpecial + 1 + draws.below(possible_answers(config));
  const auto first = static_cast<size_t>(draws.below(config.length - 2));
  example.tokens[first] = kSpecial;
  example.tokens.back() = kSpecial;
  example.targets.back() = example.tokens[first + 1];
  return example;
}

RecallSplit split_of(const std::vector<int64_t>& tokens) {
  uint64_t hash = 0;
  for (const int64_t token : tokens) {
    const Philox4 bits = philox(hash, static_cast<uint64_t>(token));
    hash = uint64_t{bits.word[0]} << 32 | bits.word[1];
  }
  switch (hash % 8) {
    case 0:
      return RecallSplit::test;
    case 1:
      return RecallSplit::validation;
    default:
      return RecallSplit::training;
  }
}

}  // namespace

RecallTask parse_recall_task(const std::string& name) {
  for (const auto& [task, task_name] : kTaskNames) {
    if (name == task_name) return task;
  }
  fail("recall: expected task mqar, copy or induction, got '", name, "'");
}

std::string name_of(RecallTask task) {
  return kTaskNames[static_cast<size_t>(task)].second;
}

void check(const RecallConfig& config) {
  const auto& [task, length, pairs, vocabulary, power] = config;
  const std::string name = name_of(task);
  ELWISE_CHECK(pairs > 0, "recall: expected 1 pair or more, got ", pairs);
  int64_t least_length = 0, least_vocabulary = 0;
  switch (task) {
    case RecallTask::mqar:
      least_length = 4 * pairs;
      least_vocabulary = 2 * (pairs + 1);
      ELWISE_CHECK(power >= -1 && power <= 1, "recall: expected a power in -1 .. 1, got ", power);
      break;
    case RecallTask::copy:
      least_length = 2 * pairs;
      least_vocabulary = 4;
      break;
    case RecallTask::induction:
      ELWISE_CHECK(pairs == 1, "recall: induction asks one question: expected 1 pair, got ", pairs);
      least_length = 4;
      least_vocabulary = 3;
      break;
  }
  ELWISE_CHECK(length >= least_length, "recall: ", name, " of ", pairs, " pairs needs a length of ",
               least_length, ", got ", length);
  ELWISE_CHECK(vocabulary >= least_vocabulary, "recall: ", name, " of ", pairs,
               " pairs needs a vocabulary of ", least_vocabulary, ", got ", vocabulary);
}

int64_t possible_answers(const RecallConfig& config) {
  switch (config.task) {
    case RecallTask::mqar:
      return config.vocabulary - first_value(config);
    case RecallTask::copy:
      return config.vocabulary - 2;  // neither noise nor marker
    case RecallTask::induction:
      break;
  }
  return config.vocabulary - 1;
}

RecallExample recall_example(const RecallConfig& config, RecallSplit split, uint64_t seed, int64_t index) {
  check(config);
  Draws draws(seed, static_cast<uint64_t>(index));
  for (int draw = 0; draw < kDraws; ++draw) {
    RecallExample example = config.task == RecallTask::mqar   ? associative_recall(config, draws)
                            : config.task == RecallTask::copy ? selective_copying(config, draws)
                                                              : induction_heads(config, draws);
    if (split_of(example.tokens) == split) return example;
  }
  fail("recall: ", name_of(config.task), " of length ", config.length, ", ", config.pairs, " pairs and ",
       config.vocabulary, " tokens has too few sequences to hold some back: none in ", kDraws, " draws");
}

RecallBatch recall_batch(const RecallConfig& config, RecallSplit split, uint64_t seed, int64_t first,
                         int64_t count, Device device) {
  std::vector<int64_t> tokens, targets;
  for (int64_t index = first; index < first + count; ++index) {
    const RecallExample example = recall_example(config, split, seed, index);
    tokens.insert(tokens.end(), example.tokens.begin(), example.tokens.end());
    targets.insert(targets.end(), example.targets.begin(), example.targets.end());
  }
  const Shape shape{count, config.length};
  return {.tokens = to(from_vector(tokens, shape), device),
          .targets = to(from_vector(targets, shape), device)};
}

}  // namespace elwise::tools
