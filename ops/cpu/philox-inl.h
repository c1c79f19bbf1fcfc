// Philox-4x32-10 (core/random.h) with one counter per 64-bit lane. Compiled once per target.

#if defined(ELWISE_OPS_CPU_PHILOX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ELWISE_OPS_CPU_PHILOX_INL_H_
#undef ELWISE_OPS_CPU_PHILOX_INL_H_
#else
#define ELWISE_OPS_CPU_PHILOX_INL_H_
#endif

#include <hwy/highway.h>

#include <cmath>
#include <cstdint>

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

/// The four words of philox(seed, counter) for each lane's counter, in the lower halves of the lanes; the
/// upper halves hold rubbish.
template <class V>
struct PhiloxLanes {
  V word[4];
};

/// The 64-bit products of the lower halves of 64-bit lanes.
template <class V>
HWY_INLINE V multiply_lower(V a, V b) {
  const hn::Repartition<uint32_t, hn::DFromV<V>> d32;
  return hn::MulEven(hn::BitCast(d32, a), hn::BitCast(d32, b));
}

template <class V>
HWY_INLINE PhiloxLanes<V> philox_lanes(uint64_t seed, V counters) {
  const hn::DFromV<V> d;
  const auto multiplier0 = hn::Set(d, 0xD2511F53u), multiplier1 = hn::Set(d, 0xCD9E8D57u);
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
  return {{c0, c1, c2, c3}};
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

/// uniform01(word) < p, for what load_bits24 gives, is bits < this: n / 2^24 >= p is n >= ceil(2^24 p).
template <class DI>
HWY_INLINE hn::VFromD<DI> dropout_threshold(DI di, double p) {
  return hn::Set(di, static_cast<hn::TFromD<DI>>(std::ceil(p * 0x1p24)));
}

}  // namespace elwise::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
