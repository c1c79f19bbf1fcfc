#pragma once

#include "core/dtype.h"
#include "tests/support/cuda/language.h"

/// Rounds to nearest even, as the hardware does.
struct __nv_bfloat16 {
  elwise::BFloat16 value;

  __nv_bfloat16() = default;
  __nv_bfloat16(float x) : value(x) {}
  operator float() const { return static_cast<float>(value); }
};

inline __nv_bfloat16 __float2bfloat16(float x) {
  return __nv_bfloat16(x);
}
inline float __bfloat162float(__nv_bfloat16 x) {
  return x;
}
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) {
  return x.value.bits;
}
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
  __nv_bfloat16 x;
  x.value.bits = bits;
  return x;
}
