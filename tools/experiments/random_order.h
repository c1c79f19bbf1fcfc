#pragma once

#include <cstdint>
#include <vector>

namespace elwise::tools {

/// The numbers 0 .. count - 1 in a random order that depends on `seed` and `stream` (the number of an epoch,
/// say) alone, not on what was drawn before.
std::vector<int64_t> random_order(int64_t count, uint64_t seed, uint64_t stream);

}  // namespace elwise::tools
