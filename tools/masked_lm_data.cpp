#include "tools/masked_lm_data.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "core/file.h"
#include "ops/elementwise.h"

namespace elwise::tools {
namespace {

constexpr int64_t kBytes = 256;

/// Member by member: where a later initialiser of a nested aggregate throws (out of memory), g++ 12 destroys
/// the earlier ones twice.
MaskedLmBatch make_batch(Tensor tokens, Tensor masked, Tensor labels) {
  MaskedLmBatch batch;
  batch.input.tokens = std::move(tokens);
  batch.masked = std::move(masked);
  batch.labels = std::move(labels);
  return batch;
}

}  // namespace

MaskedLmData::MaskedLmData(int64_t vocabulary, uint64_t seed)
    : generator_(seed), tokens_(vocabulary - 1), mask_token_(vocabulary - 1) {
  ELWISE_CHECK(vocabulary >= 2, "vocabulary: expected at least 2 (a token and the mask), got ", vocabulary);
}

MaskedLmData::MaskedLmData(const std::filesystem::path& text, int64_t vocabulary, uint64_t seed)
    : generator_(seed), tokens_(kBytes), mask_token_(kBytes), text_(read_file(text)) {
  ELWISE_CHECK(!text_.empty(), "text: ", text.string(), " is empty");
  ELWISE_CHECK(vocabulary > kBytes, "vocabulary: expected at least ", kBytes + 1,
               " for text (bytes and the mask), got ", vocabulary);
  position_ = static_cast<size_t>(random_below(static_cast<int64_t>(text_.size())));
}

int64_t MaskedLmData::random_below(int64_t bound) {
  const RandomStream stream = generator_.reserve(2);
  const double uniform =
      (static_cast<double>(stream.word(0)) + static_cast<double>(stream.word(1)) * 0x1p-32) * 0x1p-32;
  return std::min(static_cast<int64_t>(uniform * static_cast<double>(bound)), bound - 1);
}

int64_t MaskedLmData::next_token() {
  if (text_.empty()) {
    // The inverse of Zipf's distribution function, log(r + 1) / log(tokens + 1), at a uniform number.
    const double uniform = static_cast<double>(uniform01(generator_.reserve(1).word(0)));
    return static_cast<int64_t>(std::pow(static_cast<double>(tokens_ + 1), uniform)) - 1;
  }
  const auto token = static_cast<int64_t>(static_cast<unsigned char>(text_[position_]));
  position_ = (position_ + 1) % text_.size();
  return token;
}

MaskedLmBatch MaskedLmData::next(int64_t batch, int64_t length, Device device) {
  const int64_t count = batch * length;
  const int64_t chosen = models::masked_positions(batch, length);
  if (device == kMeta) {  // only shapes count there, and a million tokens take seconds to draw
    const TensorOptions options = {.dtype = DType::i64, .device = device};
    return make_batch(empty({batch, length}, options), empty({chosen}, options), empty({chosen}, options));
  }
  std::vector<int64_t> tokens(static_cast<size_t>(count));
  for (int64_t& token : tokens) token = std::clamp<int64_t>(next_token(), 0, tokens_ - 1);

  // The first `chosen` entries of a Fisher-Yates shuffle are a uniform choice without repetition.
  std::vector<int64_t> positions(static_cast<size_t>(count));
  std::iota(positions.begin(), positions.end(), int64_t{0});
  for (int64_t i = 0; i < chosen; ++i) {
    std::swap(positions[static_cast<size_t>(i)], positions[static_cast<size_t>(i + random_below(count - i))]);
  }
  positions.resize(static_cast<size_t>(chosen));
  std::sort(positions.begin(), positions.end());

  std::vector<int64_t> labels;
  for (const int64_t position : positions) {
    int64_t& token = tokens[static_cast<size_t>(position)];
    labels.push_back(token);
    const int64_t draw = random_below(10);
    if (draw < 8) {
      token = mask_token_;
    } else if (draw == 8) {
      token = random_below(tokens_);
    }
  }
  return make_batch(to(from_vector(tokens, {batch, length}), device),
                    to(from_vector(positions, {chosen}), device), to(from_vector(labels, {chosen}), device));
}

}  // namespace elwise::tools
