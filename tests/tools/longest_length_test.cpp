#include "tools/longest_length.h"

#include <doctest/doctest.h>

#include <map>

namespace elwise::testing {

using tools::CostRequest;
using tools::CostResult;
using tools::kLengthStep;
using tools::LongestLength;

namespace {

CostRequest tiny(const std::string& attention) {
  CostRequest request;
  request.model = {.vocabulary = 300, .hidden = 32, .layers = 2, .heads = 4, .intermediate = 64};
  request.model.dropout = request.model.attention_dropout = 0;
  request.model.attention = nn::Mechanism::parse(attention);
  request.batch = 2;
  request.steps = 1;
  return request;
}

bool go_on(int64_t) {
  return true;
}

/// The peak of a step on meta, which knows no limit here.
int64_t peak(CostRequest request, int64_t length) {
  request = tools::with_length(std::move(request), length);
  request.model.options.device = kMeta;
  return tools::measure_cost(request, go_on).memory.total.peak;
}

}  // namespace

TEST_CASE("the longest length is what trying every length gives") {
  for (const auto& [attention, checkpoint] :
       {std::pair("sa", false), std::pair("sa", true), std::pair("ea", false), std::pair("ea-6", true)}) {
    CAPTURE(attention);
    CAPTURE(checkpoint);
    CostRequest request = tiny(attention);
    request.checkpoint_layers = request.model.causal = checkpoint;
    // Lengths around and far from the end of the position table, where memory falls.
    constexpr int64_t kLongest = 9600;
    std::map<int64_t, int64_t> peaks;
    for (int64_t length = kLengthStep; length <= kLongest; length += kLengthStep) {
      peaks[length] = peak(request, length);
    }
    const int64_t table = models::kLongestPositionTable;
    std::vector<int64_t> budgets = {peaks[kLengthStep] - 1,
                                    peaks[kLengthStep],
                                    peaks[table] - 1,
                                    peaks[table],
                                    peaks[table + kLengthStep] - 1,
                                    peaks[table + kLengthStep],
                                    peaks[table + kLengthStep] + 1};
    for (int64_t length = 2 * kLengthStep; length < 9000;
         length = length * 5 / 4 / kLengthStep * kLengthStep + 8) {
      budgets.push_back(peaks[length] + 1);
    }
    for (const int64_t budget : budgets) {
      int64_t expected = 0;
      for (const auto& [length, bytes] : peaks) expected = bytes <= budget ? length : expected;
      REQUIRE(expected < kLongest);  // else the brute force did not look far enough
      const LongestLength found = tools::find_longest_length(request, budget);
      CAPTURE(budget);
      CHECK(found.length == expected);
      if (expected > 0) CHECK(found.cost.memory.total.peak == peaks[expected]);
    }
  }
}

TEST_CASE("AFT's longest length ends where its biases do") {
  const CostRequest request = tiny("aft");
  for (const int64_t length : {int64_t{1024}, nn::kLongestPositionBias}) {
    CHECK(tools::find_longest_length(request, peak(request, length)).length == length);
  }
  const int64_t plenty = int64_t{1} << 50;
  CHECK(tools::find_longest_length(request, plenty).length == nn::kLongestPositionBias);
}

TEST_CASE("a search leaves the memory limits as they were") {
  const int64_t cpu = memory_limit(kCpu), meta = memory_limit(kMeta);
  tools::find_longest_length(tiny("sa"), int64_t{1} << 24);
  CHECK(memory_limit(kCpu) == cpu);
  CHECK(memory_limit(kMeta) == meta);
}

TEST_CASE("the CPU confirms a predicted length to the byte, and not a wrong one") {
  for (const char* attention : {"sa", "ea-6"}) {
    const CostRequest request = tiny(attention);
    const int64_t budget = int64_t{40} << 20;
    const LongestLength found = tools::find_longest_length(request, budget);
    REQUIRE(found.length > 0);
    const auto confirmed = tools::confirm_longest_length(request, found, budget, go_on);
    REQUIRE(confirmed.has_value());
    CHECK(confirmed->holds(found));

    LongestLength shorter = found;
    shorter.length -= kLengthStep;
    const auto fits_beyond = tools::confirm_longest_length(request, shorter, budget, go_on);
    REQUIRE(fits_beyond.has_value());
    CHECK(fits_beyond->beyond_fits);
    CHECK_FALSE(fits_beyond->holds(shorter));

    LongestLength longer = found;
    longer.length += kLengthStep;
    const auto too_long = tools::confirm_longest_length(request, longer, budget, go_on);
    REQUIRE(too_long.has_value());
    CHECK_FALSE(too_long->cost.has_value());
    CHECK_FALSE(too_long->holds(longer));

    CHECK_FALSE(
        tools::confirm_longest_length(request, found, budget, [](int64_t) { return false; }).has_value());
  }
}

}  // namespace elwise::testing
