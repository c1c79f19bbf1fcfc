#include "models/sampling.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"

namespace elwise::models {

Sampler::Sampler(const SamplingOptions& options) : options_(options) {
  ELWISE_CHECK(options.temperature >= 0, "sampling: expected a temperature of 0 or more, got ",
               options.temperature);
  ELWISE_CHECK(options.top_k >= 0, "sampling: expected a top-k of 0 (all) or more, got ", options.top_k);
  ELWISE_CHECK(options.top_p > 0 && options.top_p <= 1, "sampling: expected a top-p above 0, at most 1, got ",
               options.top_p);
}

const std::vector<Sampler::Candidate>& Sampler::candidates(const std::vector<double>& logits) {
  ELWISE_CHECK(!logits.empty(), "sampling: expected logits, got none");
  size_t largest = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    ELWISE_CHECK(!std::isnan(logits[i]), "sampling: the logit of token ", i, " is NaN");
    if (logits[i] > logits[largest]) largest = i;
  }
  candidates_.clear();
  if (options_.temperature == 0) {
    candidates_.push_back({static_cast<int64_t>(largest), 1});
    return candidates_;
  }
  double total = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const double weight = i == largest ? 1 : std::exp((logits[i] - logits[largest]) / options_.temperature);
    candidates_.push_back({static_cast<int64_t>(i), weight});
    total += weight;
  }
  for (Candidate& candidate : candidates_) candidate.probability /= total;
  if (options_.top_k > 0 || options_.top_p < 1) keep_most_probable();
  return candidates_;
}

void Sampler::keep_most_probable() {
  const auto before = [](const Candidate& a, const Candidate& b) {
    return a.probability != b.probability ? a.probability > b.probability : a.token < b.token;
  };
  size_t count = candidates_.size();
  if (options_.top_k > 0) count = std::min(count, static_cast<size_t>(options_.top_k));
  std::partial_sort(candidates_.begin(), candidates_.begin() + static_cast<int64_t>(count), candidates_.end(),
                    before);
  candidates_.resize(count);
  double total = 0;
  for (const Candidate& candidate : candidates_) total += candidate.probability;
  double nucleus = 0;
  size_t kept = 0;
  while (kept < count && (kept == 0 || nucleus < options_.top_p * total)) {
    nucleus += candidates_[kept++].probability;
  }
  candidates_.resize(kept);
  for (Candidate& candidate : candidates_) candidate.probability /= nucleus;
}

int64_t Sampler::draw(const std::vector<double>& logits, double uniform) {
  double cumulative = 0;
  for (const Candidate& candidate : candidates(logits)) {
    cumulative += candidate.probability;
    if (uniform < cumulative) return candidate.token;
  }
  // Rounding left the sum below 1: the last token that can be drawn.
  const auto last = std::find_if(candidates_.rbegin(), candidates_.rend(),
                                 [](const Candidate& candidate) { return candidate.probability > 0; });
  return last->token;
}

}  // namespace elwise::models
