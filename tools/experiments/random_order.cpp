#include "tools/experiments/random_order.h"

#include <numeric>
#include <utility>

#include "core/random.h"

namespace elwise::tools {
namespace {

/// Keeps these numbers apart from the streams of default_generator() under the same seed.
constexpr uint64_t kOrderSeed = 0x6F72646572ull;  // "order"

}  // namespace

std::vector<int64_t> random_order(int64_t count, uint64_t seed, uint64_t stream) {
  std::vector<int64_t> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  constexpr uint64_t kStreamStride = uint64_t{1} << 40;
  // Fisher and Yates's shuffle
  for (size_t i = order.size(); i > 1; --i) {
    const Philox4 bits = philox(seed ^ kOrderSeed, stream * kStreamStride + i);
    const uint64_t number = (uint64_t{bits.word[0]} << 32) | bits.word[1];
    const auto chosen = static_cast<size_t>((static_cast<unsigned __int128>(number) * i) >> 64);
    std::swap(order[i - 1], order[chosen]);
  }
  return order;
}

}  // namespace elwise::tools
