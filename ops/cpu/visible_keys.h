#pragma once

#include <algorithm>
#include <cstdint>

namespace elwise::cpu {

/// Walks the keys before row `end` tile by tile: while (keys.next()) ... Skips hidden keys and empty tiles.
class VisibleKeys {
 public:
  static constexpr int64_t kMostKeys = 128;

  /// `mask` is that of one batch entry, null where all keys are visible; a tile has `tile` <= kMostKeys rows.
  VisibleKeys(const bool* mask, int64_t end, bool causal, int64_t tile)
      : mask_(mask), end_(end), causal_(causal), tile_(tile) {}

  /// Moves on to the next tile with a visible key. False if there is none.
  bool next() {
    count_ = 0;
    while (count_ == 0 && next_ < end_) {
      begin_ = next_;
      next_ = std::min(begin_ + tile_, end_);
      for (int64_t j = begin_; j < next_; ++j) {
        if (!mask_ || mask_[j]) row_[count_++] = j;
      }
    }
    return count_ > 0;
  }

  /// The first row of this tile, visible or not.
  int64_t begin() const { return begin_; }
  /// The visible keys of this tile, and the row of each.
  int64_t count() const { return count_; }
  int64_t row(int64_t j) const { return row_[j]; }

  /// How many of them, the first ones, the query in row `query` sees.
  int64_t seen_by(int64_t query) const {
    return causal_ ? std::upper_bound(row_, row_ + count_, query) - row_ : count_;
  }

 private:
  const bool* mask_;
  int64_t begin_ = 0, next_ = 0, end_;
  bool causal_;
  int64_t tile_, count_ = 0;
  int64_t row_[kMostKeys];
};

}  // namespace elwise::cpu
