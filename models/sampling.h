#pragma once

#include <cstdint>
#include <vector>

namespace elwise::models {

/// How the next token is drawn. The rules apply in this order.
struct SamplingOptions {
  double temperature = 1;  // logits are divided by it; 0: the most probable token
  int64_t top_k = 0;       // only the k most probable tokens; 0: all
  double top_p = 1;        // only the fewest most probable tokens that together reach this probability (the
                           // nucleus of Holtzman et al., arXiv 1904.09751)
};

/// Draws tokens from logits. Keeps its buffers: drawing allocates nothing once the vocabulary is known.
class Sampler {
 public:
  struct Candidate {
    int64_t token;
    double probability;
  };

  /// Throws Error unless temperature and top_k are 0 or more and 0 < top_p <= 1.
  explicit Sampler(const SamplingOptions& options);

  /// The tokens that may be drawn, with probabilities that add up to 1. With top_k or top_p the most probable
  /// come first, of equals the smaller token; in the order of tokens otherwise. Valid until the next call.
  /// Throws Error for a NaN among the logits.
  const std::vector<Candidate>& candidates(const std::vector<double>& logits);

  /// The token at `uniform`, in [0, 1), of the candidates' cumulative distribution.
  int64_t draw(const std::vector<double>& logits, double uniform);

 private:
  void keep_most_probable();

  SamplingOptions options_;
  std::vector<Candidate> candidates_;
};

}  // namespace elwise::models
