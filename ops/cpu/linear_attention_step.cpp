// The recurrence of linear attention (eq. 18 of arXiv 2501.05730; Katharopoulos et al., arXiv 2006.16236),
// head by head: a row's key joins the state in the pass over it that answers the row's query.

#include "ops/attention_step_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/linear_attention_step.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <vector>

#include "ops/cpu/row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE {
namespace {

template <class T>
using Tag = hn::ScalableTag<T>;
template <class T>
using Vec = hn::Vec<Tag<T>>;

/// to = exp(-shift) phi(x), phi(x) = x + 1 above 0 and exp(x) up to there; shift is 0 or the largest x, which
/// is negative then.
template <class S, class T>
HWY_INLINE void features(const S* x, int64_t head, T shift, T* to) {
  const Tag<T> d;
  const Vec<T> zero = hn::Zero(d);
  for_each_vector(d, 0, head, [&](int64_t i, int64_t n) HWY_ATTR {
    const Vec<T> value = load_lanes(d, x + i, n);
    const Vec<T> below = ExpNonPositive(d, hn::Sub(hn::Min(value, zero), hn::Set(d, shift)));
    const Vec<T> above = hn::Add(value, hn::Set(d, T(1)));
    store_lanes(d, hn::IfThenElse(hn::Gt(value, zero), above, below), to + i, n);
  });
}

/// One row of one head. kAddKey: the key's features join s [head, head] and z [head] first.
template <bool kAddKey, class S, class T>
HWY_INLINE void step_row(const T* phi_q, const T* phi_k, const S* v, T* s, T* z, S* y, int64_t head) {
  const Tag<T> d;
  Vec<T> denominators = hn::Zero(d);
  for_each_vector(d, 0, head, [&](int64_t i, int64_t n) HWY_ATTR {
    Vec<T> sum = load_lanes(d, z + i, n);
    if constexpr (kAddKey) {
      sum = hn::Add(sum, load_lanes(d, phi_k + i, n));
      store_lanes(d, sum, z + i, n);
    }
    denominators = hn::MulAdd(sum, load_lanes(d, phi_q + i, n), denominators);
  });
  const T denominator = ReduceSum(d, denominators);
  const Vec<T> inverse = hn::Set(d, denominator == 0 ? T(0) : 1 / denominator);
  for_each_vector(d, 0, head, [&](int64_t i, int64_t n) HWY_ATTR {
    Vec<T> value = hn::Zero(d), answer = hn::Zero(d);
    if constexpr (kAddKey) value = load_lanes(d, v + i, n);
    for (int64_t feature = 0; feature < head; ++feature) {
      T* const at = s + feature * head + i;
      Vec<T> sum = load_lanes(d, at, n);
      if constexpr (kAddKey) {
        sum = hn::MulAdd(hn::Set(d, phi_k[feature]), value, sum);
        store_lanes(d, sum, at, n);
      }
      answer = hn::MulAdd(hn::Set(d, phi_q[feature]), sum, answer);
    }
    store_lanes(d, hn::Mul(answer, inverse), y + i, n);
  });
}

/// All rows of one head of one batch entry.
template <class S, class T>
HWY_ATTR void step_head(const LinearAttentionStep& args, int64_t pair, T* phi_q, T* phi_k) {
  const Tag<T> d;
  const int64_t head = args.head, batch = pair / args.heads, channels = args.heads * head;
  const int64_t first = batch * args.length * channels + pair % args.heads * head;
  const auto *q = static_cast<const S*>(args.q) + first, *k = static_cast<const S*>(args.k) + first,
             *v = static_cast<const S*>(args.v) + first;
  S* y = static_cast<S*>(args.y) + first;
  T *s = static_cast<T*>(args.s) + pair * head * head, *z = static_cast<T*>(args.z) + pair * head;
  for (int64_t row = 0; row < args.length; ++row) {
    const int64_t at = row * channels;
    // A common factor of the query's features cancels: the largest is 1 where all are small.
    const T largest =
        max_terms(d, head, [&](int64_t i, int64_t n) HWY_ATTR { return load_lanes(d, q + at + i, n); });
    features(q + at, head, std::min(largest, T(0)), phi_q);
    if (args.key_mask == nullptr || args.key_mask[batch * args.length + row]) {
      features(k + at, head, T(0), phi_k);
      step_row<true>(phi_q, phi_k, v + at, s, z, y + at, head);
    } else {
      step_row<false>(phi_q, phi_k, v + at, s, z, y + at, head);
    }
  }
}

template <class S, class T = Compute<S>>
void step_all(const LinearAttentionStep& args) {
  const int64_t work = args.length * args.head * args.head;
  parallel_for(args.batch * args.heads, 1 + kElementsPerThread / std::max<int64_t>(work, 1),
               [&](int64_t begin, int64_t end) HWY_ATTR {
                 std::vector<T> scratch(static_cast<size_t>(2 * args.head));
                 for (int64_t pair = begin; pair < end; ++pair) {
                   step_head<S>(args, pair, scratch.data(), scratch.data() + args.head);
                 }
               });
}

void linear_attention_step_simd(const LinearAttentionStep& args) {
  dispatch_f32_f64_bf16(args.dtype, "linear_attention_step", [&]<class S>() { step_all<S>(args); });
}

}  // namespace
}  // namespace elwise::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace elwise::cpu {

HWY_EXPORT(linear_attention_step_simd);

void linear_attention_step(const LinearAttentionStep& args) {
  HWY_DYNAMIC_DISPATCH(linear_attention_step_simd)(args);
}

}  // namespace elwise::cpu
#endif
