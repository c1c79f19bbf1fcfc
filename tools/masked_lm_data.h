#pragma once

#include <filesystem>
#include <string>

#include "core/random.h"
#include "models/bert.h"

namespace elwise::tools {

/// One batch for masked-language-model training.
struct MaskedLmBatch {
  models::BertInput input;  // tokens [batch, length], some of them masked
  Tensor masked;            // i64 [models::masked_positions], indices into the flattened tokens, ascending
  Tensor labels;            // i64, the tokens that stood there
};

/// An endless, seeded stream of batches from a text file, its bytes being the tokens, or from a synthetic
/// text whose token frequencies follow Zipf's law. Masking is BERT's: of the chosen positions 80 % become the
/// mask token, 10 % a random token, 10 % stay.
class MaskedLmData {
 public:
  /// Synthetic: token r has frequency proportional to 1 / (r + 1); the last token of the vocabulary is the
  /// mask.
  MaskedLmData(int64_t vocabulary, uint64_t seed);
  /// Text: token 256 is the mask. Throws Error for a file that cannot be read or is empty, and unless
  /// vocabulary > 256.
  MaskedLmData(const std::filesystem::path& text, int64_t vocabulary, uint64_t seed);

  /// The next batch, on `device`; on meta its shapes only, and the stream stays where it is.
  MaskedLmBatch next(int64_t batch, int64_t length, Device device);

 private:
  int64_t random_below(int64_t bound);
  int64_t next_token();

  Generator generator_;
  int64_t tokens_;  // ordinary tokens: 0 .. tokens_ - 1
  int64_t mask_token_;
  std::string text_;  // empty: synthetic
  size_t position_ = 0;
};

}  // namespace elwise::tools
