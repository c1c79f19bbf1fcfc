#pragma once

#include <array>
#include <cmath>
#include <cstdint>

#include "core/host_device.h"

// Counter-based random numbers: Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011). Number i of a stream is a function of (seed, offset, i) alone, so every device and every thread
// count draws the same numbers.

namespace elwise {

struct Philox4 {
  uint32_t word[4];
};

/// The 128 random bits of `counter` under `seed`.
ELWISE_HOST_DEVICE inline Philox4 philox(uint64_t seed, uint64_t counter) {
  uint32_t c0 = static_cast<uint32_t>(counter), c1 = static_cast<uint32_t>(counter >> 32), c2 = 0, c3 = 0;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c0, p1 = uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

/// 24 of a word's bits as a float in [0, 1).
ELWISE_HOST_DEVICE inline float uniform01(uint32_t word) {
  return static_cast<float>(word >> 8) * 0x1p-24f;
}

/// Where a random kernel draws from: element i uses word i % 4 of philox(seed, offset + i / 4).
struct RandomStream {
  uint64_t seed = 0;
  uint64_t offset = 0;

  ELWISE_HOST_DEVICE uint32_t word(uint64_t i) const { return philox(seed, offset + i / 4).word[i % 4]; }
};

/// A seeded source of streams. The state (seed, offset) is all there is to save and restore.
class Generator {
 public:
  explicit Generator(uint64_t seed = 0) : state_{seed, 0} {}

  /// A stream of `count` words that no later call overlaps.
  RandomStream reserve(uint64_t count) {
    const RandomStream stream = state_;
    state_.offset += (count + 3) / 4;
    return stream;
  }
  RandomStream state() const { return state_; }
  void set_state(RandomStream state) { state_ = state; }

 private:
  RandomStream state_;
};

/// The calling thread's generator, used by every random op and initialiser that is given none.
Generator& default_generator();

/// Reseeds the calling thread's generator: default_generator().set_state({seed, 0}).
void manual_seed(uint64_t seed);

}  // namespace elwise
