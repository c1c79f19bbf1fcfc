// Loops over the vectors of one dense row, the last of which may be partial, and the sums and maxima built on
// them. Include it after core/simd-inl.h; it is compiled once per target.

#if defined(ELWISE_OPS_CPU_ROW_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ELWISE_OPS_CPU_ROW_INL_H_
#undef ELWISE_OPS_CPU_ROW_INL_H_
#else
#define ELWISE_OPS_CPU_ROW_INL_H_
#endif

#include <hwy/cache_control.h>
#include <hwy/highway.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>

#include "core/parallel.h"
#include "core/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE {

using namespace elwise::HWY_NAMESPACE;  // core/simd-inl.h

/// The fewest elements that are worth a thread of their own.
inline constexpr int64_t kElementsPerThread = 16384;

/// The grain of a parallel_for over rows.
constexpr int64_t rows_per_thread(int64_t cols) {
  return kElementsPerThread / std::max<int64_t>(cols, 1) + 1;
}

/// The first n lanes from memory, 0 in the others. n is Lanes(d) in all calls but a row's last, and constant
/// there once the loops below are inlined.
template <class D>
HWY_INLINE hn::VFromD<D> load_lanes(D d, const hn::TFromD<D>* from, int64_t n) {
  return n == static_cast<int64_t>(hn::Lanes(d)) ? hn::LoadU(d, from) : LoadPart(d, from, n);
}

/// The same from bf16, as f32: a kernel of element type T works on vectors of Compute<T>.
template <class D>
HWY_INLINE hn::VFromD<D> load_lanes(D d, const BFloat16* from, int64_t n) {
  const hn::Rebind<uint16_t, D> d16;
  return Bf16BitsToFloat(d, load_lanes(d16, reinterpret_cast<const uint16_t*>(from), n));
}

/// Stores the first n lanes.
template <class D>
HWY_INLINE void store_lanes(D d, hn::VFromD<D> v, hn::TFromD<D>* to, int64_t n) {
  if (n == static_cast<int64_t>(hn::Lanes(d))) {
    hn::StoreU(v, d, to);
  } else {
    StorePart(d, v, to, n);
  }
}

/// The same of f32 to bf16, rounded to nearest even.
template <class D>
HWY_INLINE void store_lanes(D d, hn::VFromD<D> v, BFloat16* to, int64_t n) {
  const hn::Rebind<uint16_t, D> d16;
  store_lanes(d16, FloatToBf16Bits(d, v), reinterpret_cast<uint16_t*>(to), n);
}

/// Elements of a cache line.
template <class T>
inline constexpr int64_t kLine = 64 / sizeof(T);

/// Elements from `to` to the beginning of a cache line.
template <class T>
int64_t to_next_line(const T* to) {
  return static_cast<int64_t>(-reinterpret_cast<uintptr_t>(to) % 64 / sizeof(T));
}

/// Whether results [rows, cols] are written past the caches, within the cache lines that are a row's own:
/// beyond this size they would not be there any more when they are read. Vectors must fill those lines; those
/// of bf16 fill them in pairs.
inline constexpr int64_t kStreamBytes = int64_t{8} << 20;

template <class T>
bool may_stream_inside(int64_t rows, int64_t cols) {
  return hn::MaxLanes(hn::ScalableTag<Compute<T>>()) * sizeof(Compute<T>) == 64 &&
         rows * cols * static_cast<int64_t>(sizeof(T)) >= kStreamBytes;
}

/// The same where rows must have whole lines.
template <class T>
bool may_stream(const void* tensor, int64_t rows, int64_t cols) {
  return may_stream_inside<T>(rows, cols) && to_next_line(static_cast<const T*>(tensor)) == 0 &&
         cols % kLine<T> == 0;
}

/// Stores the first n lanes; where `stream`, which may_stream allows, past the caches: then a
/// hwy::FlushStream() must follow on this thread.
template <class D>
HWY_INLINE void store_lanes(D d, hn::VFromD<D> v, hn::TFromD<D>* to, int64_t n, bool stream) {
  stream ? hn::Stream(v, d, to) : store_lanes(d, v, to, n);
}

template <class D>
HWY_INLINE void store_lanes(D d, hn::VFromD<D> v, BFloat16* to, int64_t n, bool stream) {
  const hn::Rebind<uint16_t, D> d16;
  store_lanes(d16, FloatToBf16Bits(d, v), reinterpret_cast<uint16_t*>(to), n, stream);
}

/// Asks for the cache line at `p`, which is read some kilobytes from now: up to the second level, which takes
/// more requests at a time than the first, and does not lose for it what is worked on until then. May point
/// beyond the tensor.
HWY_INLINE void prefetch_far(const void* p) {
  __builtin_prefetch(p, 0, 2);
}

/// The same for a line that will be written.
HWY_INLINE void prefetch_far_to_write(const void* p) {
  __builtin_prefetch(p, 1, 2);
}

/// Calls body(i, n) for each vector of [begin, end): lanes i .. i + n - 1, n = Lanes(d) but in the last.
template <class D, class Body>
HWY_INLINE void for_each_vector(D d, int64_t begin, int64_t end, const Body& body) {
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = begin;
  for (; i + lanes <= end; i += lanes) body(i, lanes);
  if (i < end) body(i, end - i);
}

/// K vectors of terms, each for a sum of its own.
template <class D, int K>
struct Terms {
  hn::VFromD<D> lanes[K];
};

/// The K sums of all lanes of term(i, n).lanes[k] over the vectors of [begin, end), term returning Terms.
/// Accurate for long rows: blocks of 4096 elements are added in T, in four accumulators of lanes, and the
/// blocks' sums in f64.
template <int K, class D, class Term>
HWY_INLINE std::array<double, K> sum_terms(D d, int64_t begin, int64_t end, const Term& term) {
  constexpr int64_t kBlock = 4096;
  constexpr int kAccumulators = 4;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  std::array<double, K> totals{};
  for (int64_t block = begin; block < end; block += kBlock) {
    const int64_t block_end = std::min(end, block + kBlock);
    Terms<D, K> sums[kAccumulators];
    for (auto& sum : sums) {
      for (auto& v : sum.lanes) v = hn::Zero(d);
    }
    int64_t i = block;
    for (; i + kAccumulators * lanes <= block_end; i += kAccumulators * lanes) {
      for (int a = 0; a < kAccumulators; ++a) {
        const Terms<D, K> terms = term(i + a * lanes, lanes);
        for (int k = 0; k < K; ++k) sums[a].lanes[k] = hn::Add(sums[a].lanes[k], terms.lanes[k]);
      }
    }
    for (; i < block_end; i += lanes) {
      const int64_t n = std::min(lanes, block_end - i);
      const Terms<D, K> terms = term(i, n);
      const auto valid = hn::FirstN(d, static_cast<size_t>(n));
      for (int k = 0; k < K; ++k) {
        sums[0].lanes[k] = hn::Add(sums[0].lanes[k], hn::IfThenElseZero(valid, terms.lanes[k]));
      }
    }
    for (int k = 0; k < K; ++k) {
      totals[k] += ReduceSum(d, hn::Add(hn::Add(sums[0].lanes[k], sums[1].lanes[k]),
                                        hn::Add(sums[2].lanes[k], sums[3].lanes[k])));
    }
  }
  return totals;
}

/// The one sum of term(i, n), term returning a vector.
template <class D, class Term>
HWY_INLINE double sum_terms(D d, int64_t begin, int64_t end, const Term& term) {
  return sum_terms<1>(d, begin, end,
                      [&](int64_t i, int64_t n) HWY_ATTR { return Terms<D, 1>{{term(i, n)}}; })[0];
}

/// The largest lane of term(i, n) over the vectors of [0, count), -infinity for an empty row. Any value where
/// a lane is NaN.
template <class D, class Term>
HWY_INLINE hn::TFromD<D> max_terms(D d, int64_t count, const Term& term) {
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto lowest = hn::Set(d, -std::numeric_limits<hn::TFromD<D>>::infinity());
  auto max0 = lowest, max1 = lowest;
  int64_t i = 0;
  for (; i + 2 * lanes <= count; i += 2 * lanes) {
    max0 = hn::Max(max0, term(i, lanes));
    max1 = hn::Max(max1, term(i + lanes, lanes));
  }
  for (; i + lanes <= count; i += lanes) max0 = hn::Max(max0, term(i, lanes));
  if (i < count) {
    const auto rest = hn::FirstN(d, static_cast<size_t>(count - i));
    max1 = hn::Max(max1, hn::IfThenElse(rest, term(i, count - i), lowest));
  }
  return ReduceMax(d, hn::Max(max0, max1));
}

/// sum_terms over [0, count) in parallel, with the same bits for any thread count: the bounds of the chunks
/// depend on count only, and their sums are added in order.
template <class D, class Term>
HWY_INLINE double parallel_sum_terms(D d, int64_t count, const Term& term) {
  constexpr int64_t kMostChunks = 256;
  const int64_t chunk = std::max(kElementsPerThread, (count + kMostChunks - 1) / kMostChunks);
  const int64_t chunks = (count + chunk - 1) / chunk;
  double sums[kMostChunks];
  parallel_for(chunks, 1, [&](int64_t begin, int64_t end) HWY_ATTR {
    for (int64_t c = begin; c < end; ++c) {
      sums[c] = sum_terms(d, c * chunk, std::min(count, (c + 1) * chunk), term);
    }
  });
  double total = 0;
  for (int64_t c = 0; c < chunks; ++c) total += sums[c];
  return total;
}

}  // namespace elwise::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
