#include "tools/byte_text.h"

#include <algorithm>
#include <numbers>

#include "autograd/grad_mode.h"
#include "core/file.h"
#include "ops/elementwise.h"

namespace elwise::tools {
namespace {

constexpr size_t kHeldOutPercent = 5;

/// The windows that start at `starts`, and the bytes after each of theirs.
ByteBatch windows_at(std::string_view text, const std::vector<int64_t>& starts, int64_t length,
                     Device device) {
  const auto size = static_cast<int64_t>(text.size());
  const auto byte = [&](int64_t i) {
    return static_cast<int64_t>(static_cast<unsigned char>(text[static_cast<size_t>(i)]));
  };
  std::vector<int64_t> tokens, targets;
  for (const int64_t start : starts) {
    for (int64_t i = start; i < start + length; ++i) {
      tokens.push_back(i < size ? byte(i) : 0);
      targets.push_back(i + 1 < size ? byte(i + 1) : models::kNoTarget);
    }
  }
  const Shape shape{static_cast<int64_t>(starts.size()), length};
  return {.tokens = to(from_vector(tokens, shape), device),
          .targets = to(from_vector(targets, shape), device)};
}

}  // namespace

std::vector<int64_t> byte_tokens(std::string_view text) {
  std::vector<int64_t> tokens;
  for (const char byte : text) tokens.push_back(static_cast<unsigned char>(byte));
  return tokens;
}

ByteText::ByteText(const std::filesystem::path& path, int64_t length) : bytes_(read_file(path)) {
  const size_t held_out_bytes = bytes_.size() * kHeldOutPercent / 100;
  training_bytes_ = bytes_.size() - held_out_bytes;
  ELWISE_CHECK(static_cast<int64_t>(held_out_bytes) > length, "text: expected more than ", length,
               " bytes in the held-out last ", kHeldOutPercent, " % of ", path.string(), ", got ",
               held_out_bytes);
}

ByteBatch random_windows(std::string_view text, int64_t batch, int64_t length, Device device,
                         Generator& generator) {
  const auto places = static_cast<uint64_t>(text.size()) - static_cast<uint64_t>(length);
  const RandomStream stream = generator.reserve(2 * static_cast<uint64_t>(batch));
  std::vector<int64_t> starts;
  for (uint64_t row = 0; row < static_cast<uint64_t>(batch); ++row) {
    const uint64_t bits = uint64_t{stream.word(2 * row)} << 32 | stream.word(2 * row + 1);
    starts.push_back(static_cast<int64_t>(bits % places));
  }
  return windows_at(text, starts, length, device);
}

double bits_per_byte(models::Decoder& model, std::string_view text, int64_t batch, int64_t length,
                     int64_t every) {
  const NoGradGuard inference;
  const bool training = model.is_training();
  model.eval();
  const auto size = static_cast<int64_t>(text.size());
  double nats = 0;
  int64_t bytes = 0;
  std::vector<int64_t> starts;
  const auto run = [&] {
    const ByteBatch windows = windows_at(text, starts, length, model.config().options.device);
    int64_t targets = 0;
    for (const int64_t start : starts) targets += std::min(length, size - 1 - start);
    nats += model.loss(windows.tokens, windows.targets).item() * static_cast<double>(targets);
    bytes += targets;
    starts.clear();
  };
  for (int64_t start = 0; start + 1 < size; start += every * length) {
    starts.push_back(start);
    if (static_cast<int64_t>(starts.size()) == batch) run();
  }
  if (!starts.empty()) run();
  model.train(training);
  return nats / static_cast<double>(bytes) / std::numbers::ln2;
}

}  // namespace elwise::tools
