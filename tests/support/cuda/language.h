#pragma once

#include <math.h>  // not cmath: CUDA's functions are global, with an overload per type

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "tests/support/cuda/fibers.h"

// CUDA C++ for a host compiler: what our kernels use of the language beyond C++.

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __align__(n) alignas(n)
#define __shared__ static  // one block runs at a time

inline constexpr const uint3& threadIdx = emulation::current.thread;
inline constexpr const uint3& blockIdx = emulation::current.block;
inline constexpr const dim3& blockDim = emulation::current.block_size;
inline constexpr const dim3& gridDim = emulation::current.grid_size;
inline constexpr int warpSize = emulation::kWarpSize;

#define EMULATION_TEXT_(x) #x
#define EMULATION_TEXT(x) EMULATION_TEXT_(x)
#define EMULATION_SITE __FILE__ ":" EMULATION_TEXT(__LINE__)
#define __syncthreads() static_cast<void>(::emulation::barrier(EMULATION_SITE))
#define __syncthreads_count(predicate) (::emulation::barrier(EMULATION_SITE, (predicate) != 0))
#define __syncthreads_or(predicate) (::emulation::barrier(EMULATION_SITE, (predicate) != 0) != 0)
#define __syncthreads_and(predicate) (::emulation::barrier(EMULATION_SITE, (predicate) == 0) == 0)

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) {
  return {x, y};
}
inline float4 make_float4(float x, float y, float z, float w) {
  return {x, y, z, w};
}

namespace emulation {

/// The value that lane `source` of the warp brings. Reports a source that takes no part.
template <class T>
T shuffle(uint32_t mask, T value, int source, const char* what) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const Exchange all = exchange(mask, bits, what);
  if ((all.lanes >> source & 1) == 0) {
    fault(std::string(what) + " reads lane " + std::to_string(source) + ", which takes no part");
  }
  std::memcpy(&value, &all.values[source], sizeof(T));
  return value;
}

/// `source` where it lies in the calling lane's section of `width` lanes, else the lane itself.
inline int within(int source, int width) {
  const int self = lane(), first = self / width * width;
  return source >= first && source < first + width ? source : self;
}

template <class T, class Change>
T atomic_change(T* address, Change change) {
  T old, changed;
  __atomic_load(address, &old, __ATOMIC_RELAXED);
  do {
    changed = change(old);
  } while (!__atomic_compare_exchange(address, &old, &changed, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return old;
}

}  // namespace emulation

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize) {
  const int first = emulation::lane() / width * width;
  return emulation::shuffle(mask, value, first + (source & (width - 1)), "__shfl_sync");
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = warpSize) {
  return emulation::shuffle(mask, value, emulation::within(emulation::lane() ^ bits, width),
                            "__shfl_xor_sync");
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
  const int source = emulation::lane() - static_cast<int>(delta);
  return emulation::shuffle(mask, value, emulation::within(source, width), "__shfl_up_sync");
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
  const int source = emulation::lane() + static_cast<int>(delta);
  return emulation::shuffle(mask, value, emulation::within(source, width), "__shfl_down_sync");
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const emulation::Exchange all = emulation::exchange(mask, predicate != 0, "__ballot_sync");
  unsigned result = 0;
  for (int lane = 0; lane < warpSize; ++lane) {
    if ((all.lanes >> lane & 1) != 0 && all.values[lane] != 0) result |= 1U << lane;
  }
  return result;
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const emulation::Exchange all = emulation::exchange(mask, bits, "__match_any_sync");
  unsigned result = 0;
  for (int lane = 0; lane < warpSize; ++lane) {
    if ((all.lanes >> lane & 1) != 0 && all.values[lane] == bits) result |= 1U << lane;
  }
  return result;
}
inline int __any_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate) != 0;
}
inline int __all_sync(unsigned mask, int predicate) {
  return __ballot_sync(mask, predicate == 0) == 0;
}
inline void __syncwarp(unsigned mask = 0xFFFF'FFFF) {
  emulation::exchange(mask, 0, "__syncwarp");
}
inline void __threadfence() {}
inline void __threadfence_system() {}

template <class T>
T atomicAdd(T* address, T value) {
  return emulation::atomic_change(address, [value](T old) { return static_cast<T>(old + value); });
}
template <class T>
T atomicMax(T* address, T value) {
  return emulation::atomic_change(address, [value](T old) { return old < value ? value : old; });
}
template <class T>
T atomicMin(T* address, T value) {
  return emulation::atomic_change(address, [value](T old) { return value < old ? value : old; });
}
template <class T>
T atomicExch(T* address, T value) {
  return emulation::atomic_change(address, [value](T) { return value; });
}
template <class T>
T atomicCAS(T* address, T expected, T value) {
  return emulation::atomic_change(address, [=](T old) { return old == expected ? value : old; });
}

using std::max;
using std::min;

template <class T>
T __ldg(const T* address) {
  return *address;
}
template <class T>
void __stcg(T* address, T value) {
  *address = value;
}
inline uint64_t __umul64hi(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>((static_cast<unsigned __int128>(a) * b) >> 64);
}
inline int __popc(unsigned x) {
  return __builtin_popcount(x);
}
inline int __ffs(int x) {
  return __builtin_ffs(x);
}
inline int __clz(int x) {
  return x != 0 ? __builtin_clz(static_cast<unsigned>(x)) : 32;
}
inline float rsqrtf(float x) {
  return static_cast<float>(1 / std::sqrt(static_cast<double>(x)));
}
inline double rsqrt(double x) {
  return 1 / std::sqrt(x);
}
/// As the hardware does it: the error of the product grows with |x|.
inline float __expf(float x) {
  return std::exp2(x * 1.442695041F);
}
inline float __fdividef(float a, float b) {
  return a / b;
}
inline float __uint_as_float(unsigned bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
