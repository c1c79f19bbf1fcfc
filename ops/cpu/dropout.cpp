// Dropout and random initialisation. Philox-4x32-10 (core/random.h) runs with one counter per 64-bit lane, a
// block of words at a time into a buffer in the L1 cache, which a second loop turns into the result.

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
#include "ops/cpu/row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

constexpr int64_t kBlock = 2048;         // words drawn at a time
constexpr int64_t kBlocksPerThread = 8;  // the fewest worth a thread

/// The 64-bit products of the lower halves of 64-bit lanes.
template <class V>
HWY_INLINE V multiply_lower(V a, V b) {
  const hn::ScalableTag<uint32_t> d32;
  return hn::MulEven(hn::BitCast(d32, a), hn::BitCast(d32, b));
}

/// philox(seed, counter + i).word[w] into words[4 * i + w] for i in [0, kBlock / 4).
HWY_NOINLINE void draw(uint64_t seed, uint64_t counter, uint32_t* HWY_RESTRICT words) {
  const hn::ScalableTag<uint64_t> d;
  constexpr int64_t kLanes = hn::MaxLanes(d);
  static_assert(kBlock / 4 % kLanes == 0);
  const auto multiplier0 = hn::Set(d, 0xD2511F53u), multiplier1 = hn::Set(d, 0xCD9E8D57u);
  const auto lower_half = hn::Set(d, 0xFFFFFFFFu);
  auto counters = hn::Iota(d, counter);
  for (int64_t i = 0; i < kBlock / 4; i += kLanes) {
    // The rounds leave rubbish in the upper halves of c0 .. c3; nothing below reads them.
    auto c0 = counters, c1 = hn::ShiftRight<32>(counters);
    auto c2 = hn::Zero(d), c3 = hn::Zero(d);
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
      const auto p0 = multiply_lower(multiplier0, c0), p1 = multiply_lower(multiplier1, c2);
      c0 = hn::Xor(hn::Xor(hn::ShiftRight<32>(p1), c1), hn::Set(d, k0));
      c1 = p1;
      c2 = hn::Xor(hn::Xor(hn::ShiftRight<32>(p0), c3), hn::Set(d, k1));
      c3 = p0;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    const auto words01 = hn::Or(hn::And(c0, lower_half), hn::ShiftLeft<32>(c1));
    const auto words23 = hn::Or(hn::And(c2, lower_half), hn::ShiftLeft<32>(c3));
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

/// Lanes(d) words as integers of the size of d's lanes, shifted right by 8: 2^24 times uniform01.
template <class D>
HWY_INLINE auto load_bits24(D, const uint32_t* words) {
  const hn::RebindToSigned<D> di;
  const hn::Rebind<uint32_t, D> d32;
  const auto bits = hn::ShiftRight<8>(hn::LoadU(d32, words));
  if constexpr (sizeof(hn::TFromD<D>) == 4) {
    return hn::BitCast(di, bits);
  } else {
    return hn::PromoteTo(di, hn::BitCast(hn::RebindToSigned<decltype(d32)>(), bits));
  }
}

template <class T>
void drop(const Dropout& args) {
  const hn::ScalableTag<T> d;
  const hn::RebindToSigned<decltype(d)> di;
  const auto* x = static_cast<const T*>(args.x);
  auto* y = static_cast<T*>(args.y);
  // u >= p for u = n / 2^24 is n >= ceil(2^24 p).
  const auto threshold = hn::Set(di, static_cast<hn::TFromD<decltype(di)>>(std::ceil(args.p * 0x1p24)));
  const auto scale = hn::Set(d, static_cast<T>(1 / (1 - args.p)));
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
  const hn::ScalableTag<T> d;
  auto* y = static_cast<T*>(args.y);
  const auto low = hn::Set(d, static_cast<T>(args.a));
  const auto step = hn::Set(d, static_cast<T>((args.b - args.a) * 0x1p-24));
  for_blocks(args.stream, args.count, [&](const uint32_t* words, int64_t begin, int64_t count) HWY_ATTR {
    for_each_vector(d, 0, count, [&](int64_t i, int64_t n) HWY_ATTR {
      const auto value = hn::MulAdd(hn::ConvertTo(d, load_bits24(d, words + i)), step, low);
      store_lanes(d, value, y + begin + i, n);
    });
  });
}

/// Box-Muller in double, lane by lane: the same values for f32 and f64, up to rounding.
template <class T>
void fill_normal(const RandomFill& args) {
  auto* y = static_cast<T*>(args.y);
  for_blocks(args.stream, args.count, [&](const uint32_t* words, int64_t begin, int64_t count) {
    for (int64_t i = 0; i < count; i += 2) {
      const double u1 = 1.0 - static_cast<double>(uniform01(words[i]));  // in (0, 1]
      const double angle = 2 * std::numbers::pi * static_cast<double>(uniform01(words[i + 1]));
      const double radius = args.b * std::sqrt(-2 * std::log(u1));
      y[begin + i] = static_cast<T>(args.a + radius * std::cos(angle));
      if (i + 1 < count) y[begin + i + 1] = static_cast<T>(args.a + radius * std::sin(angle));
    }
  });
}

}  // namespace

void dropout_simd(const Dropout& args) {
  dispatch_f32_f64(args.dtype, "dropout", [&]<class T>() { drop<T>(args); });
}

void random_fill_simd(const RandomFill& args) {
  dispatch_f32_f64(args.dtype, "random_fill", [&]<class T>() {
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
