// The one SIMD wrapper over Highway: partial vectors, reductions, bf16, and (from core/simd_math-inl.h) exp,
// log, tanh, erf and sigmoid. Include it after <hwy/foreach_target.h> and <hwy/highway.h>; a kernel file is
// compiled once per target, and so is this one, into namespace elwise::HWY_NAMESPACE.
//
// Highway 1.0.3's own math is not used: its exp(NaN) is 0, its f32 exp(200) is 0, and its bf16 demotion
// truncates.

#if defined(ELWISE_CORE_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ELWISE_CORE_SIMD_INL_H_
#undef ELWISE_CORE_SIMD_INL_H_
#else
#define ELWISE_CORE_SIMD_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>

#include "core/cpu_features.h"
#include "core/dtype.h"
#include "core/simd_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// True where masked loads and stores leave the other lanes' memory untouched.
template <class T>
inline constexpr bool kHasMaskedMemory = HWY_ARCH_X86 && (HWY_TARGET <= HWY_AVX3 ||
                                                          (HWY_TARGET <= HWY_AVX2 && sizeof(T) >= 4));

/// The first `n` <= Lanes(d) lanes of `from`, 0 in the other lanes. Reads nothing beyond from[n - 1].
template <class D, class T = hn::TFromD<D>>
HWY_INLINE hn::VFromD<D> LoadPart(D d, const T* from, int64_t n) {
  if constexpr (kHasMaskedMemory<T>) {
    return hn::MaskedLoad(hn::FirstN(d, static_cast<size_t>(n)), d, from);
  } else {
    HWY_ALIGN T lanes[hn::MaxLanes(D())] = {};
    for (int64_t i = 0; i < n; ++i) lanes[i] = from[i];
    return hn::Load(d, lanes);
  }
}

/// Stores the first `n` <= Lanes(d) lanes of `v`. Writes nothing beyond to[n - 1].
template <class D, class T = hn::TFromD<D>>
HWY_INLINE void StorePart(D d, hn::VFromD<D> v, T* to, int64_t n) {
  if constexpr (kHasMaskedMemory<T>) {
    hn::BlendedStore(v, hn::FirstN(d, static_cast<size_t>(n)), d, to);
  } else {
    HWY_ALIGN T lanes[hn::MaxLanes(D())];
    hn::Store(v, d, lanes);
    for (int64_t i = 0; i < n; ++i) to[i] = lanes[i];
  }
}

/// The sum of all lanes.
template <class D>
HWY_INLINE hn::TFromD<D> ReduceSum(D d, hn::VFromD<D> v) {
  return hn::GetLane(hn::SumOfLanes(d, v));
}

/// The largest lane. Any value where a lane is NaN.
template <class D>
HWY_INLINE hn::TFromD<D> ReduceMax(D d, hn::VFromD<D> v) {
  return hn::GetLane(hn::MaxOfLanes(d, v));
}

/// The bits of bf16 values as f32 (exact).
template <class DF>
HWY_INLINE hn::VFromD<DF> Bf16BitsToFloat(DF df, hn::VFromD<hn::Rebind<uint16_t, DF>> bits) {
  const hn::RebindToUnsigned<DF> d32;
  return hn::BitCast(df, hn::ShiftLeft<16>(hn::PromoteTo(d32, bits)));
}

/// The bits of f32 values as bf16, rounded to nearest even; a NaN stays a (quiet) NaN. They are those of
/// BFloat16(float).
template <class DF>
HWY_INLINE hn::VFromD<hn::Rebind<uint16_t, DF>> FloatToBf16Bits(DF, hn::VFromD<DF> v) {
  const hn::Rebind<uint16_t, DF> d16;
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX3
  if constexpr (hn::MaxLanes(DF()) == 16) {
    // One instruction for ten. It takes subnormals for 0.
    constexpr int kSubnormal = 0x20;
    if (kHasAvx512Bf16 && HWY_LIKELY(_mm512_fpclass_ps_mask(v.raw, kSubnormal) == 0)) {
      __m256i bits;
      asm("vcvtneps2bf16 %1, %0" : "=v"(bits) : "v"(v.raw));
      return hn::VFromD<decltype(d16)>{bits};
    }
  }
#endif
  const hn::RebindToUnsigned<DF> d32;
  const auto word = hn::BitCast(d32, v);
  const auto upper = hn::ShiftRight<16>(word);
  const auto odd = hn::And(upper, hn::Set(d32, 1u));
  const auto rounded = hn::ShiftRight<16>(hn::Add(word, hn::Add(odd, hn::Set(d32, 0x7FFFu))));
  const auto quiet = hn::Or(upper, hn::Set(d32, 0x40u));
  return hn::TruncateTo(d16, hn::IfThenElse(hn::RebindMask(d32, hn::IsNaN(v)), quiet, rounded));
}

/// Lets the calling thread take numbers below the least normal one for 0, within a scope. Exponentials, such
/// as the weights of attention, fall in that range, where arithmetic is many times slower.
class FlushToZero {
 public:
#if HWY_ARCH_X86
  FlushToZero() : saved_(_mm_getcsr()) {
    _mm_setcsr(saved_ | kFlushResults | kFlushOperands);
  }
  ~FlushToZero() {
    _mm_setcsr(saved_);
  }
  FlushToZero(const FlushToZero&) = delete;
  FlushToZero& operator=(const FlushToZero&) = delete;

 private:
  static constexpr unsigned kFlushResults = 0x8000, kFlushOperands = 0x40;
  unsigned saved_;
#endif
};

}  // namespace elwise::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
