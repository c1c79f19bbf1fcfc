// What the kernels of the Attention Free Transformer share; ops/aft_kernels.h has the mathematics. S is the
// element type of the tensors, T = Compute<S> that of vectors and sums.

#if defined(ELWISE_OPS_CPU_AFT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ELWISE_OPS_CPU_AFT_INL_H_
#undef ELWISE_OPS_CPU_AFT_INL_H_
#else
#define ELWISE_OPS_CPU_AFT_INL_H_
#endif

#include <hwy/highway.h>

#include <cstdint>
#include <limits>

#include "core/simd-inl.h"
#include "ops/aft_kernels.h"
#include "ops/cpu/row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE::aft {

template <class T>
using Tag = hn::ScalableTag<T>;
template <class T>
using Vec = hn::Vec<Tag<T>>;

/// Row `row` of a batch entry, of a tensor [batch, length, channels].
template <class T, class Arguments>
HWY_INLINE T* row_of(T* tensor, const Arguments& args, int64_t batch, int64_t row) {
  return tensor + (batch * args.length + row) * args.channels;
}

/// The same row of a tensor [length, batch, 2, channels]: the first of the two, with the second behind it.
template <class T, class Arguments>
HWY_INLINE T* pair_of(T* tensor, const Arguments& args, int64_t batch, int64_t row) {
  return tensor + (row * args.batch + batch) * 2 * args.channels;
}

/// Calls body(batch, row) for each row of each batch entry, in parallel.
template <class Arguments, class Body>
void for_each_row(const Arguments& args, const Body& body) {
  parallel_for(args.batch * args.length, rows_per_thread(args.channels),
               [&](int64_t begin, int64_t end) HWY_ATTR {
                 for (int64_t row = begin; row < end; ++row) body(row / args.length, row % args.length);
               });
}

/// The probabilities of one query over the keys that it sees, for a vector of channels: its weights exp(w_ij
/// + k_j), relative to the largest, over their sum.
template <class S, class Arguments>
class DirectAnswer {
  using T = Compute<S>;

 public:
  DirectAnswer(const Arguments& args, int64_t batch, int64_t row, int64_t channel, int64_t lanes)
      : args_(args),
        batch_(batch),
        channel_(channel),
        lanes_(lanes),
        end_(args.direct.causal ? row + 1 : args.length),
        bias_(static_cast<const S*>(args.direct.position_bias) + row * args.direct.positions),
        largest_(hn::Set(Tag<T>(), -std::numeric_limits<T>::infinity())),
        total_(hn::Zero(Tag<T>())) {
    for_each_visible([&](int64_t key) HWY_ATTR { largest_ = hn::Max(largest_, exponent(key).sum); });
    for_each_visible([&](int64_t key) HWY_ATTR { total_ = hn::Add(total_, weight(key)); });
  }

  HWY_INLINE Vec<T> value(int64_t key) const { return load(args_.direct.v, key); }

  /// Calls body(key, probability) for each key that the query sees.
  template <class Body>
  HWY_INLINE void for_each_key(const Body& body) const {
    for_each_visible([&](int64_t key) HWY_ATTR { body(key, hn::Div(weight(key), total_)); });
  }

 private:
  /// A sum and what rounding took off it.
  struct Exponent {
    Vec<T> sum, error;
  };

  template <class Body>
  HWY_INLINE void for_each_visible(const Body& body) const {
    const bool* mask = args_.direct.key_mask;
    for (int64_t key = 0; key < end_; ++key) {
      if (mask == nullptr || mask[batch_ * args_.length + key]) body(key);
    }
  }

  HWY_INLINE Vec<T> load(const void* tensor, int64_t key) const {
    return load_lanes(Tag<T>(), row_of(static_cast<const S*>(tensor), args_, batch_, key) + channel_, lanes_);
  }

  /// w_ij + k_j by Knuth's TwoSum: of large addends that cancel, or nearly equal sums, every digit counts.
  HWY_INLINE Exponent exponent(int64_t key) const {
    const Tag<T> d;
    const auto k = load(args_.direct.k, key), w = hn::Set(d, static_cast<T>(bias_[key]));
    const auto sum = hn::Add(k, w), part = hn::Sub(sum, k);
    const auto error = hn::Add(hn::Sub(k, hn::Sub(sum, part)), hn::Sub(w, part));
    return {sum, hn::IfThenZeroElse(hn::IsNaN(error), error)};  // NaN where an addend is infinite
  }

  HWY_INLINE Vec<T> weight(int64_t key) const {
    const auto [sum, error] = exponent(key);
    return Exp(Tag<T>(), hn::Add(hn::Sub(sum, largest_), error));
  }

  const Arguments& args_;
  int64_t batch_, channel_, lanes_, end_;
  const S* bias_;
  Vec<T> largest_, total_;
};

}  // namespace elwise::cpu::HWY_NAMESPACE::aft
HWY_AFTER_NAMESPACE();

#endif
