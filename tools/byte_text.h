#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "core/random.h"
#include "models/decoder.h"

namespace elwise::tools {

/// Tokens of a byte-level language model: the bytes of UTF-8 or of whatever else a file holds.
inline constexpr int64_t kByteVocabulary = 256;

std::vector<int64_t> byte_tokens(std::string_view text);

/// A text file in two pieces: what is trained on, and its last 5 %, which is held out.
class ByteText {
 public:
  /// Throws Error for a file that cannot be read, and unless both pieces have more than `length` bytes.
  ByteText(const std::filesystem::path& path, int64_t length);

  std::string_view training() const { return std::string_view(bytes_).substr(0, training_bytes_); }
  std::string_view held_out() const { return std::string_view(bytes_).substr(training_bytes_); }

 private:
  std::string bytes_;
  size_t training_bytes_;
};

/// One batch for next-byte prediction, both i64 [batch, length].
struct ByteBatch {
  Tensor tokens;
  Tensor targets;  // the byte after each, models::kNoTarget behind the end
};

/// `batch` windows of `length` bytes at random places, each of whose bytes has a successor.
ByteBatch random_windows(std::string_view text, int64_t batch, int64_t length, Device device,
                         Generator& generator = default_generator());

/// The model's bits per byte on the text, cut into windows of `length` bytes, of which every `every`-th
/// counts: a byte is predicted from those before it in its window. `batch` windows are run at a time. The
/// model's training() is switched off meanwhile.
double bits_per_byte(models::Decoder& model, std::string_view text, int64_t batch, int64_t length,
                     int64_t every = 1);

}  // namespace elwise::tools
