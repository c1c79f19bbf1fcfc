// Softmax attention of one query over a cache (eq. 17 of arXiv 2501.05730), per head: one pass over the cache
// with an online softmax over blocks of rows.

#include "ops/attention_step_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/softmax_attention_step.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "ops/cpu/row-inl.h"
#include "ops/cpu/thread_scratch.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE {
namespace {

template <class T>
using Tag = hn::ScalableTag<T>;
template <class T>
using Vec = hn::Vec<Tag<T>>;

inline constexpr int64_t kBlock = 32;

/// Asks for the cache lines of a head in the row `from`.
template <class T>
HWY_INLINE void prefetch_head(const T* from, int64_t head) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
  for (int64_t i = 0; i < head; i += kLine) hwy::Prefetch(from + i);
}

/// The softmax of one head so far: sums relative to exp(largest).
template <class S>
class Head {
  using T = Compute<S>;

 public:
  /// sums [head] receives the sum of values. (Not HWY_INLINE: std::vector calls it, compiled for no SIMD
  /// target.)
  Head(const S* q, T* sums, int64_t head, T scale) : q_(q), sums_(sums), head_(head), scale_(scale) {
    std::fill_n(sums, head, T(0));
  }

  /// Adds `rows` <= kBlock rows that lie `stride` apart.
  HWY_NOINLINE void add(const S* k, const S* v, int64_t stride, int64_t rows) {
    const Tag<T> d;
    alignas(64) T weights[kBlock];
    std::fill_n(weights, kBlock, -std::numeric_limits<T>::infinity());
    for (int64_t row = 0; row < rows; ++row) {
      prefetch_head(k + (row + kBlock) * stride, head_);  // beyond the cache it does no harm
      weights[row] = scale_ * dot(k + row * stride);
    }
    const int64_t lanes = static_cast<int64_t>(hn::Lanes(d));  // they divide kBlock
    Vec<T> largest_lanes = hn::Set(d, largest_);
    for (int64_t i = 0; i < kBlock; i += lanes) {
      largest_lanes = hn::Max(largest_lanes, hn::Load(d, weights + i));
    }
    const T largest = ReduceMax(d, largest_lanes);
    const Vec<T> shift = hn::Set(d, largest);
    Vec<T> sum = hn::Zero(d);
    for (int64_t i = 0; i < kBlock; i += lanes) {
      const Vec<T> w = ExpOfDifference(d, hn::Load(d, weights + i), shift);
      hn::Store(w, d, weights + i);
      sum = hn::Add(sum, w);
    }
    const T factor = std::exp(largest_ - largest);
    sum_ = sum_ * factor + ReduceSum(d, sum);
    largest_ = largest;
    for (int64_t row = 0; row < rows; ++row) prefetch_head(v + (row + kBlock) * stride, head_);
    for_each_vector(d, 0, head_, [&](int64_t i, int64_t n) HWY_ATTR {
      Vec<T> values = hn::Zero(d), others = hn::Zero(d);
      int64_t row = 0;
      for (; row + 2 <= rows; row += 2) {
        values = hn::MulAdd(hn::Set(d, weights[row]), load_lanes(d, v + row * stride + i, n), values);
        others =
            hn::MulAdd(hn::Set(d, weights[row + 1]), load_lanes(d, v + (row + 1) * stride + i, n), others);
      }
      if (row < rows)
        values = hn::MulAdd(hn::Set(d, weights[row]), load_lanes(d, v + row * stride + i, n), values);
      const Vec<T> before = load_lanes(d, sums_ + i, n);
      store_lanes(d, hn::MulAdd(before, hn::Set(d, factor), hn::Add(values, others)), sums_ + i, n);
    });
  }

  /// y = the sum of values over the sum of weights. At least one row was added.
  HWY_INLINE void finish(S* y) const {
    const Tag<T> d;
    const Vec<T> inverse = hn::Set(d, 1 / sum_);
    for_each_vector(d, 0, head_, [&](int64_t i, int64_t n) HWY_ATTR {
      store_lanes(d, hn::Mul(load_lanes(d, sums_ + i, n), inverse), y + i, n);
    });
  }

 private:
  HWY_INLINE T dot(const S* k) const {
    const Tag<T> d;
    Vec<T> sum = hn::Zero(d);
    for_each_vector(d, 0, head_, [&](int64_t i, int64_t n) HWY_ATTR {
      sum = hn::MulAdd(load_lanes(d, q_ + i, n), load_lanes(d, k + i, n), sum);
    });
    return ReduceSum(d, sum);
  }

  const S* q_;
  T* sums_;
  int64_t head_;
  T scale_;
  T largest_ = -std::numeric_limits<T>::infinity();
  T sum_ = 0;
};

/// Heads [first, last) of one batch entry, block by block of rows: whole rows come from memory in turn.
template <class S>
HWY_ATTR void answer_heads(const SoftmaxAttentionStep& args, int64_t batch, int64_t first, int64_t last) {
  const CachePointers& cache = args.cache;
  const int64_t stride = cache.channels, head = stride / args.heads, rows = cache.lengths[batch];
  const int64_t start = batch * cache.capacity * stride;
  const auto *k = static_cast<const S*>(cache.k) + start, *v = static_cast<const S*>(cache.v) + start;
  const S* q = static_cast<const S*>(args.q) + batch * stride + first * head;
  S* y = static_cast<S*>(args.y) + batch * stride + first * head;
  if (rows == 0) {
    std::fill_n(y, (last - first) * head, S());
    return;
  }
  Compute<S>* sums;
  if constexpr (std::is_same_v<S, Compute<S>>) {
    sums = y;
  } else {
    sums = thread_scratch<Compute<S>>((last - first) * head);
  }
  std::vector<Head<S>> heads;
  for (int64_t h = 0; h < last - first; ++h) {
    heads.emplace_back(q + h * head, sums + h * head, head, static_cast<Compute<S>>(args.scale));
  }
  for (int64_t row = 0; row < rows; row += kBlock) {
    for (int64_t h = first; h < last; ++h) {
      const int64_t at = row * stride + h * head;
      heads[static_cast<size_t>(h - first)].add(k + at, v + at, stride, std::min(kBlock, rows - row));
    }
  }
  for (int64_t h = 0; h < last - first; ++h) heads[static_cast<size_t>(h)].finish(y + h * head);
}

template <class T>
void answer_all(const SoftmaxAttentionStep& args) {
  const CachePointers& cache = args.cache;
  const int64_t head = cache.channels / args.heads;
  const int64_t grain = 1 + kElementsPerThread / std::max<int64_t>(cache.longest * head, 1);
  parallel_for(cache.batch * args.heads, grain, [&](int64_t begin, int64_t end) HWY_ATTR {
    while (begin < end) {
      const int64_t batch = begin / args.heads, first = begin % args.heads,
                    last = std::min(args.heads, first + end - begin);
      answer_heads<T>(args, batch, first, last);
      begin += last - first;
    }
  });
}

void softmax_attention_step_simd(const SoftmaxAttentionStep& args) {
  dispatch_f32_f64_bf16(args.dtype, "softmax_attention_step", [&]<class T>() { answer_all<T>(args); });
}

}  // namespace
}  // namespace elwise::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace elwise::cpu {

HWY_EXPORT(softmax_attention_step_simd);

void softmax_attention_step(const SoftmaxAttentionStep& args) {
  HWY_DYNAMIC_DISPATCH(softmax_attention_step_simd)(args);
}

}  // namespace elwise::cpu
#endif
