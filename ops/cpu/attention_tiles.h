#pragma once

#include <algorithm>
#include <cstdint>

namespace elwise::cpu {

/// How a head is cut: blocks of queries against blocks of keys. Sizes follow from the shape alone.
struct AttentionTiles {
  static constexpr int64_t kMostQueries = 192;
  static constexpr int64_t kMostKeys = 96;
  static constexpr int64_t kPanel = 48;  // queries side by side: three of the widest vectors
  static constexpr int64_t kUnit = 16;   // elements of the widest vector

  int64_t head;     // channels of a head
  int64_t width;    // the same, in whole units
  int64_t queries;  // of a block, in whole panels
  int64_t keys;     // of a block, in whole units
  int64_t blocks;   // of queries, in all heads of all batch entries

  static constexpr AttentionTiles of(int64_t batch, int64_t length, int64_t channels, int64_t heads) {
    const int64_t head = channels / heads, width = round_up(head, kUnit);
    const int64_t scale =
        std::max<int64_t>((width + 63) / 64, 1);  // the larger the head, the smaller the block
    const int64_t most = round_up(kMostQueries / scale, kPanel);
    const int64_t parts = std::max<int64_t>((length + most - 1) / most, 1);
    const int64_t queries = round_up((length + parts - 1) / parts, kPanel);
    const int64_t keys = std::min(round_up(kMostKeys / ((scale + 1) / 2), kUnit), round_up(length, kUnit));
    return {.head = head,
            .width = width,
            .queries = queries,
            .keys = keys,
            .blocks = length == 0 ? 0 : batch * heads * (round_up(length, queries) / queries)};
  }

  static constexpr int64_t round_up(int64_t size, int64_t unit) { return (size + unit - 1) / unit * unit; }
};

}  // namespace elwise::cpu
