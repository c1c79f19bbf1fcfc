#include "core/random.h"

#include <doctest/doctest.h>

#include <thread>
#include <vector>

namespace elwise {
namespace {

using Words = std::array<uint32_t, 4>;

/// Philox-4x32-10 with the whole 128-bit counter, as the paper writes it.
Words reference_philox(Words counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t left = uint64_t{0xD2511F53} * counter[0], right = uint64_t{0xCD9E8D57} * counter[2];
    const auto high = [](uint64_t product) { return static_cast<uint32_t>(product >> 32); };
    const auto low = [](uint64_t product) { return static_cast<uint32_t>(product); };
    counter = {high(right) ^ counter[1] ^ key[0], low(right), high(left) ^ counter[3] ^ key[1], low(left)};
    key = {key[0] + 0x9E3779B9, key[1] + 0xBB67AE85};
  }
  return counter;
}

Words words_of(const Philox4& bits) {
  return {bits.word[0], bits.word[1], bits.word[2], bits.word[3]};
}

TEST_CASE("Philox gives the known answers of the Random123 distribution") {
  CHECK(words_of(philox(0, 0)) == Words{0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8});
  // The other vectors set all four words of the counter, of which philox() takes two.
  const uint32_t ones = 0xFFFFFFFF;
  CHECK(reference_philox({0, 0, 0, 0}, {0, 0}) == words_of(philox(0, 0)));
  CHECK(reference_philox({ones, ones, ones, ones}, {ones, ones}) ==
        Words{0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD});
  CHECK(reference_philox({0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344}, {0xA4093822, 0x299F31D0}) ==
        Words{0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1});
}

TEST_CASE("seed and counter are the low words of Philox's key and counter") {
  const uint64_t seed = 0x299F31D0A4093822, counter = 0x85A308D3243F6A88;
  CHECK(words_of(philox(seed, counter)) ==
        reference_philox({0x243F6A88, 0x85A308D3, 0, 0}, {0xA4093822, 0x299F31D0}));
  CHECK(words_of(philox(~uint64_t{0}, ~uint64_t{0})) ==
        reference_philox({0xFFFFFFFF, 0xFFFFFFFF, 0, 0}, {0xFFFFFFFF, 0xFFFFFFFF}));
}

TEST_CASE("element i of a stream is word i % 4 of counter offset + i / 4") {
  const RandomStream stream{.seed = 7, .offset = 100};
  for (uint64_t i = 0; i < 13; ++i) CHECK(stream.word(i) == philox(7, 100 + i / 4).word[i % 4]);
}

TEST_CASE("uniform numbers lie in [0, 1) and their mean and variance are right") {
  CHECK(uniform01(0) == 0);
  CHECK(uniform01(0xFFFFFFFF) == 1 - 0x1p-24f);
  CHECK(uniform01(0x80000000) == 0.5f);
  const RandomStream stream{.seed = 1};
  const int count = 100'000;
  double sum = 0, squares = 0;
  for (uint64_t i = 0; i < count; ++i) {
    const double value = uniform01(stream.word(i));
    sum += value;
    squares += value * value;
  }
  const double mean = sum / count;
  CHECK(mean == doctest::Approx(0.5).epsilon(0.005));
  CHECK(squares / count - mean * mean == doctest::Approx(1.0 / 12).epsilon(0.01));
}

TEST_CASE("streams that are reserved never overlap") {
  Generator generator(42);
  uint64_t end = 0;
  for (const uint64_t count : {1, 4, 5, 3, 0, 8, 1000, 1}) {
    const RandomStream stream = generator.reserve(count);
    CHECK(stream.seed == 42);
    CHECK(stream.offset >= end);
    end = stream.offset + (count + 3) / 4;
  }
  CHECK(generator.state().offset == end);
}

TEST_CASE("a generator's state restores its streams") {
  Generator generator(3), other(99);
  generator.reserve(17);
  other.set_state(generator.state());
  const RandomStream a = generator.reserve(5), b = other.reserve(5);
  CHECK(a.seed == b.seed);
  CHECK(a.offset == b.offset);
}

TEST_CASE("manual_seed starts the calling thread's generator anew and no other's") {
  const RandomStream before = default_generator().state();
  manual_seed(5);
  default_generator().reserve(9);
  std::thread([] {
    CHECK(default_generator().state().seed == 0);
    manual_seed(6);
  }).join();
  CHECK(default_generator().state().seed == 5);
  CHECK(default_generator().state().offset == 3);
  manual_seed(5);
  CHECK(default_generator().state().offset == 0);
  default_generator().set_state(before);
}

}  // namespace
}  // namespace elwise
