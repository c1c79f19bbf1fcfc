// Dropout and random initialisation. Philox fills a buffer in the L1 cache with a block of words at a time,
// which a second loop turns into the result.

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/parallel.h"
#include "ops/dropout_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/dropout.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "core/simd-inl.h"
#include "ops/cpu/philox-inl.h"
#include "ops/cpu/row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

constexpr int64_t kBlock = 2048;         // words drawn at a time
constexpr int64_t kBlocksPerThread = 8;  // the fewest worth a thread

/// philox(seed, counter + i).word[w] into words[4 * i + w] for i in [0, kBlock / 4).
HWY_NOINLINE void draw(uint64_t seed, uint64_t counter, uint32_t* HWY_RESTRICT words) {
  const hn::ScalableTag<uint64_t> d;
  constexpr int64_t kLanes = hn::MaxLanes(d);
  static_assert(kBlock / 4 % kLanes == 0);
  const auto lower_half = hn::Set(d, 0xFFFFFFFFu);
  auto counters = hn::Iota(d, counter);
  for (int64_t i = 0; i < kBlock / 4; i += kLanes) {
    const auto lanes = philox_lanes(seed, counters);
    const auto words01 = hn::Or(hn::And(lanes.word[0], lower_half), hn::ShiftLeft<32>(lanes.word[1]));
    const auto words23 = hn::Or(hn::And(lanes.word[2], lower_half), hn::ShiftLeft<32>(lanes.word[3]));
    hn::StoreInterleaved2(words01, words23, d, reinterpret_cast<uint64_t*>(words + 4 * i));
    counters = hn::Add(counters, hn::Set(d, uint64_t{kLanes}));
  }
}

/// Calls body(words, begin, count) for blocks [begin, begin + count) that cover the elements, in parallel.
template <class Body>
void for_blocks(const RandomStream& stream, int64_t count, const Body& body) {
  parallel_for((count + kBlock - 1) / kBlock, kBlocksPerThread, [&](int64_t first, int64_t last) {
    HWY_ALIGN uint32_t words[kBlock];
    for (int64_t begin = first * kBlock; begin < std::min(last * kBlock, count); begin += kBlock) {
      draw(stream.seed, stream.offset + static_cast<uint64_t>(begin / 4), words);
      body(words, begin, std::min(kBlock, count - begin));
    }
  });
}

template <class T>
void drop(const Dropout& args) {
  const hn::ScalableTag<Compute<T>> d;
  const hn::RebindToSigned<decltype(d)> di;
  const auto* x = static_cast<const T*>(args.x);
  auto* y = static_cast<T*>(args.y);
  const auto threshold = dropout_threshold(di, args.p);
  const auto scale = hn::Set(d, static_cast<Compute<T>>(1 / (1 - args.p)));
  for_blocks(args.stream, args.count, [&](const uint32_t* words, int64_t begin, int64_t count) HWY_ATTR {
    for_each_vector(d, 0, count, [&](int64_t i, int64_t n) HWY_ATTR {
      const auto dropped = hn::RebindMask(d, hn::Lt(load_bits24(d, words + i), threshold));
      const auto kept = hn::Mul(load_lanes(d, x + begin + i, n), scale);
      store_lanes(d, hn::IfThenZeroElse(dropped, kept), y + begin + i, n);
    });
  });
}

template <class T>
void fill_uniform(const RandomFill& args) {
  const hn::ScalableTag<Compute<T>> d;
  auto* y = static_cast<T*>(args.y);
  const auto low = hn::Set(d, static_cast<Compute<T>>(args.a));
  const auto step = hn::Set(d, static_cast<Compute<T>>((args.b - args.a) * 0x1p-24));
  for_blocks(args.stream, args.count, [&](const uint32_t* words, int64_t begin, int64_t count) HWY_ATTR {
    for_each_vector(d, 0, count, [&](int64_t i, int64_t n) HWY_ATTR {
      const auto value = hn::MulAdd(hn::ConvertTo(d, load_bits24(d, words + i)), step, low);
      store_lanes(d, value, y + begin + i, n);
    });
  });
}

/// Box-Muller in double, lane by lane: the same values for any T, up to rounding.
template <class T>
void fill_normal(const RandomFill& args) {
  auto* y = static_cast<T*>(args.y);
  const auto rounded = [](double value) { return static_cast<T>(static_cast<Compute<T>>(value)); };
  for_blocks(args.stream, args.count, [&](const uint32_t* words, int64_t begin, int64_t count) {
    for (int64_t i = 0; i < count; i += 2) {
      const double u1 = 1.0 - static_cast<double>(uniform01(words[i]));  // in (0, 1]
      const double angle = 2 * std::numbers::pi * static_cast<double>(uniform01(words[i + 1]));
      const double radius = args.b * std::sqrt(-2 * std::log(u1));
      y[begin + i] = rounded(args.a + radius * std::cos(angle));
      if (i + 1 < count) y[begin + i + 1] = rounded(args.a + radius * std::sin(angle));
    }
  });
}

}  // namespace

void dropout_simd(const Dropout& args) {
  dispatch_f32_f64_bf16(args.dtype, "dropout", [&]<class T>() { drop<T>(args); });
}

void random_fill_simd(const RandomFill& args) {
  dispatch_f32_f64_bf16(args.dtype, "random_fill", [&]<class T>() {
    if (args.distribution == Distribution::uniform) {
      fill_uniform<T>(args);
    } else {
      fill_normal<T>(args);
    }
  });
}

}  // namespace elwise::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace elwise::cpu {

HWY_EXPORT(dropout_simd);
HWY_EXPORT(random_fill_simd);

void dropout(const Dropout& args) {
  HWY_DYNAMIC_DISPATCH(dropout_simd)(args);
}
void random_fill(const RandomFill& args) {
  HWY_DYNAMIC_DISPATCH(random_fill_simd)(args);
}

}  // namespace elwise::cpu
#endif
