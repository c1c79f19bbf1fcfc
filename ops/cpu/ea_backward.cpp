// The gradient of full element-wise attention, eq. 2 of arXiv 2501.05730.

#include <algorithm>
#include <type_traits>

#include "core/parallel.h"
#include "ops/ea_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/ea_backward.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "core/simd-inl.h"
#include "ops/cpu/ea-inl.h"
#include "ops/cpu/thread_scratch.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE {
namespace ea {
namespace {

/// Where a task sums its columns of dk and dv: in place, but for those of bf16, which are rounded once only.
template <class S>
struct KeySums {
  using T = Compute<S>;
  static constexpr bool kInPlace = std::is_same_v<S, T>;

  Column<T> dk, dv;

  static KeySums of(const Place<S, EaBackward>& place) {
    if constexpr (kInPlace) {
      return {place.out(place.args.dk), place.out(place.args.dv)};
    } else {
      const int64_t count = place.args.length * kLanes<T>;
      T* const sums = thread_scratch<T>(2 * count);
      return {{sums, kLanes<T>, kLanes<T>}, {sums + count, kLanes<T>, kLanes<T>}};
    }
  }
};

/// Adds the share of queries [begin, end) to dk and dv, and sets their dq.
template <class S, class T = Compute<S>>
void backward_tile(const Place<S, EaBackward>& place, const KeySums<S>& sums, int64_t begin, int64_t end) {
  const Tag<T> d;
  const auto zero = hn::Zero(d), two = hn::Set(d, T(2));
  const auto q = place.in(place.args.q), k = place.in(place.args.k), v = place.in(place.args.v);
  const auto y = place.in(place.args.y), dy = place.in(place.args.dy);
  const auto denominator = place.sums(place.args.denominator);
  const auto dq = place.out(place.args.dq);
  const int64_t count = end - begin;
  Rows<T, kQueryTile> reference, scales, dqs;  // scale: dy_i / denominator_i
  Rows<T, kKeyTile> keys, values, dks, dvs;
  find_references(place, begin, end, reference);
  for (int64_t i = 0; i < count; ++i) {
    const auto sum = denominator.load(begin + i);
    scales.set(i, hn::IfThenZeroElse(hn::Eq(sum, zero), hn::Div(dy.load(begin + i), sum)));
  }
  dqs.fill(zero, count);

  VisibleKeys visible = visible_keys(place, place.key_end(end));
  while (visible.next()) {
    pack(visible, k, keys);
    pack(visible, v, values);
    dks.fill(zero, visible.count());
    dvs.fill(zero, visible.count());
    for (int64_t i = 0; i < count; ++i) {
      const Query<T> query(q.load(begin + i), reference.get(i));
      const auto output = y.load(begin + i), scale = scales.get(i);
      const int64_t seen = visible.seen_by(begin + i);
      auto dq_sum = zero;
      for (int64_t j = 0; j < seen; ++j) {
        const auto key = keys.get(j);
        const auto distance = hn::Sub(query.q, key), displacement = hn::Sub(key, query.reference);
        const auto p_dy = hn::Mul(query.weight(distance, displacement), scale);
        const auto e = hn::Mul(p_dy, hn::Sub(values.get(j), output));
        dvs.set(j, hn::Add(dvs.get(j), p_dy));
        dks.set(j, hn::MulAdd(e, distance, dks.get(j)));
        dq_sum = hn::MulAdd(e, displacement, dq_sum);
      }
      dqs.set(i, hn::Add(dqs.get(i), dq_sum));
    }
    for (int64_t j = 0; j < visible.count(); ++j) {
      const int64_t row = visible.row(j);
      sums.dk.store(row, hn::MulAdd(two, dks.get(j), sums.dk.load(row)));
      sums.dv.store(row, hn::Add(sums.dv.load(row), dvs.get(j)));
    }
  }
  for (int64_t i = 0; i < count; ++i) dq.store(begin + i, hn::Mul(two, dqs.get(i)));
}

template <class S, class T = Compute<S>>
void run(const EaBackward& args) {
  const int64_t vectors = tiles_of(args.channels, kLanes<T>);
  parallel_tasks(args.batch * vectors, [&](int64_t task) HWY_ATTR {
    const FlushToZero flush;
    const Place<S, EaBackward> place{args, task / vectors, task % vectors * kLanes<T>};
    const auto sums = KeySums<S>::of(place);
    for (int64_t row = 0; row < args.length; ++row) {
      sums.dk.store(row, hn::Zero(Tag<T>()));
      sums.dv.store(row, hn::Zero(Tag<T>()));
    }
    for (int64_t begin = 0; begin < args.length; begin += kQueryTile) {
      backward_tile(place, sums, begin, std::min(begin + kQueryTile, args.length));
    }
    if constexpr (!KeySums<S>::kInPlace) {
      const auto dk = place.out(args.dk), dv = place.out(args.dv);
      for (int64_t row = 0; row < args.length; ++row) {
        dk.store(row, sums.dk.load(row));
        dv.store(row, sums.dv.load(row));
      }
    }
  });
}

}  // namespace
}  // namespace ea

void ea_backward_simd(const EaBackward& args) {
  dispatch_f32_f64_bf16(args.dtype, "ea_backward", [&]<class S>() { ea::run<S>(args); });
}

}  // namespace elwise::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace elwise::cpu {

HWY_EXPORT(ea_backward_simd);

void ea_backward(const EaBackward& args) {
  HWY_DYNAMIC_DISPATCH(ea_backward_simd)(args);
}

}  // namespace elwise::cpu
#endif
