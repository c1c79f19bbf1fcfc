// Linear attention of a single query, key by key: for the queries whose features meet only features so small
// that their products vanish. Every term is taken relative to the largest, so the denominator is 1 or more.

#if defined(ELWISE_OPS_CPU_LINEAR_ATTENTION_DIRECT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ELWISE_OPS_CPU_LINEAR_ATTENTION_DIRECT_INL_H_
#undef ELWISE_OPS_CPU_LINEAR_ATTENTION_DIRECT_INL_H_
#else
#define ELWISE_OPS_CPU_LINEAR_ATTENTION_DIRECT_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>
#include <limits>

#include "ops/cpu/linear_attention-inl.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE::linear_attention {

/// With x- = min(x, 0), x+ = max(x, 0): phi(x) = (1 + x+) exp(x-). r_c = max_j k_jc- over the keys that the
/// query sees and m = max_c (q_c- + r_c) give the terms (1 + q_c+) exp(q_c- + r_c - m) (1 + k_jc+)
/// exp(k_jc- - r_c), exponents not positive and 0 for one of them.
template <class T>
class DirectQuery {
 public:
  static constexpr int64_t kRows = 3;  // of scratch

  template <class S, class Arguments>
  DirectQuery(const Head<S, Arguments>& head, int64_t row, Matrix<T> scratch)
      : row_(row),
        width_(head.args.head),
        largest_(scratch.row(0)),
        slope_(scratch.row(1)),
        factor_(scratch.row(2)) {
    const Tag<T> d;
    const auto zero = hn::Zero(d);
    std::fill_n(largest_, scratch.step, -std::numeric_limits<T>::infinity());
    for_each_key(head, [&](int64_t key) HWY_ATTR {
      const S* k = head.in(head.args.k).row(key);
      for_each_vector(d, 0, width_, [&](int64_t c, int64_t n) HWY_ATTR {
        const auto negative = hn::Min(zero, load_lanes(d, k + c, n));
        hn::Store(hn::Max(hn::Load(d, largest_ + c), negative), d, largest_ + c);
      });
      sees_none_ = false;
    });
    if (sees_none_) return;
    const S* q = head.in(head.args.q).row(row);
    const auto exponent = [&](int64_t c, int64_t n) HWY_ATTR {
      return hn::Add(hn::Min(zero, load_lanes(d, q + c, n)), hn::Load(d, largest_ + c));
    };
    const auto most = hn::Set(d, max_terms(d, width_, exponent));
    for_each_vector(d, 0, width_, [&](int64_t c, int64_t n) HWY_ATTR {
      const auto query = load_lanes(d, q + c, n), negative = hn::Min(zero, query);
      const auto sum = exponent(c, n);
      // What rounding took off the sum (Knuth's TwoSum): it counts where both are large.
      const auto part = hn::Sub(sum, negative);
      const auto error =
          hn::Add(hn::Sub(negative, hn::Sub(sum, part)), hn::Sub(hn::Load(d, largest_ + c), part));
      const auto slope = Exp(d, hn::Add(hn::Sub(sum, most), error));
      hn::Store(slope, d, slope_ + c);
      hn::Store(hn::MulAdd(hn::Max(zero, query), slope, slope), d, factor_ + c);
    });
  }

  bool sees_none() const { return sees_none_; }

  /// Calls body(row) for each key that the query sees.
  template <class S, class Arguments, class Body>
  HWY_INLINE void for_each_key(const Head<S, Arguments>& head, const Body& body) const {
    for (int64_t key = 0; key < head.key_end(row_); ++key) {
      if (head.is_visible(key)) body(key);
    }
  }

  /// Channels c .. c + n - 1 of (1 + q+) exp(q- + r - m), and without the first factor.
  HWY_INLINE Vec<T> factor(int64_t c) const { return hn::Load(Tag<T>(), factor_ + c); }
  HWY_INLINE Vec<T> slope(int64_t c) const { return hn::Load(Tag<T>(), slope_ + c); }

  /// exp(k- - r) for these channels of a key.
  HWY_INLINE Vec<T> key_slope(int64_t c, Vec<T> key) const {
    const Tag<T> d;
    return ExpNonPositive(d, hn::Sub(hn::Min(hn::Zero(d), key), hn::Load(d, largest_ + c)));
  }

  /// The sum of all terms of the key `k`.
  template <class S>
  HWY_INLINE T weight(const S* k) const {
    const Tag<T> d;
    return static_cast<T>(sum_terms(d, 0, width_, [&](int64_t c, int64_t n) HWY_ATTR {
      const auto key = load_lanes(d, k + c, n), slope = key_slope(c, key);
      return hn::Mul(factor(c), hn::MulAdd(hn::Max(hn::Zero(d), key), slope, slope));
    }));
  }

 private:
  int64_t row_, width_;
  bool sees_none_ = true;
  T* largest_;
  T* slope_;
  T* factor_;
};

}  // namespace elwise::cpu::HWY_NAMESPACE::linear_attention
HWY_AFTER_NAMESPACE();

#endif
