#pragma once

#include <cstdint>
#include <cstring>

namespace elwise {

/// 64 bits that change with any bit of what was added: FNV-1a (Fowler, Noll & Vo) over words of 8 bytes.
/// Against damage, not against forgery.
class Checksum {
 public:
  /// Pieces count by themselves: adding "ab" is not adding "a", then "b".
  void add(const void* data, int64_t bytes) {
    const auto* begin = static_cast<const unsigned char*>(data);
    int64_t done = 0;
    for (; done + kWord <= bytes; done += kWord) add_word(begin + done, kWord);
    if (done < bytes) add_word(begin + done, bytes - done);
    value_ = (value_ ^ static_cast<uint64_t>(bytes)) * kPrime;
  }

  uint64_t value() const { return value_; }

 private:
  static constexpr int64_t kWord = 8;
  static constexpr uint64_t kPrime = 0x100000001B3;

  /// Each word's bits go through a bijection of value_, so that no later word can undo a difference.
  void add_word(const unsigned char* from, int64_t bytes) {
    uint64_t word = 0;
    std::memcpy(&word, from, static_cast<size_t>(bytes));
    value_ = (value_ ^ word) * kPrime;
  }

  uint64_t value_ = 0xCBF29CE484222325;
};

}  // namespace elwise
