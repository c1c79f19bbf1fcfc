// The forward pass of full element-wise attention, eq. 2 of arXiv 2501.05730.

#include <algorithm>

#include "core/parallel.h"
#include "ops/ea_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/ea_forward.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "core/simd-inl.h"
#include "ops/cpu/ea-inl.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE {
namespace ea {
namespace {

template <class S, class T = Compute<S>>
void forward_tile(const Place<S, EaForward>& place, int64_t begin, int64_t end) {
  const Tag<T> d;
  const auto zero = hn::Zero(d);
  const auto q = place.in(place.args.q), k = place.in(place.args.k), v = place.in(place.args.v);
  const auto y = place.out(place.args.y);
  const auto denominator = place.sums(place.args.denominator);
  const int64_t count = end - begin;
  Rows<T, kQueryTile> reference, numerators, denominators;
  Rows<T, kKeyTile> keys, values;
  find_references(place, begin, end, reference);
  numerators.fill(zero, count);
  denominators.fill(zero, count);

  VisibleKeys visible = visible_keys(place, place.key_end(end));
  while (visible.next()) {
    pack(visible, k, keys);
    pack(visible, v, values);
    for (int64_t i = 0; i < count; ++i) {
      const Query<T> query(q.load(begin + i), reference.get(i));
      const int64_t seen = visible.seen_by(begin + i);
      auto numerator = zero, sum = zero;
      for (int64_t j = 0; j < seen; ++j) {
        const auto key = keys.get(j);
        const auto w = query.weight(hn::Sub(query.q, key), hn::Sub(key, query.reference));
        numerator = hn::MulAdd(w, values.get(j), numerator);
        sum = hn::Add(sum, w);
      }
      numerators.set(i, hn::Add(numerators.get(i), numerator));
      denominators.set(i, hn::Add(denominators.get(i), sum));
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    const auto sum = denominators.get(i);
    const auto sees_none = hn::Eq(sum, zero);
    y.store(begin + i, hn::IfThenZeroElse(sees_none, hn::Div(numerators.get(i), sum)));
    denominator.store(begin + i, sum);
  }
}

template <class S, class T = Compute<S>>
void run(const EaForward& args) {
  const int64_t vectors = tiles_of(args.channels, kLanes<T>), tiles = tiles_of(args.length, kQueryTile);
  parallel_tasks(args.batch * vectors * tiles, [&](int64_t task) HWY_ATTR {
    const FlushToZero flush;
    const int64_t vector = task / tiles, begin = task % tiles * kQueryTile;
    const Place<S, EaForward> place{args, vector / vectors, vector % vectors * kLanes<T>};
    forward_tile(place, begin, std::min(begin + kQueryTile, args.length));
  });
}

}  // namespace
}  // namespace ea

void ea_forward_simd(const EaForward& args) {
  dispatch_f32_f64_bf16(args.dtype, "ea_forward", [&]<class S>() { ea::run<S>(args); });
}

}  // namespace elwise::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace elwise::cpu {

HWY_EXPORT(ea_forward_simd);

void ea_forward(const EaForward& args) {
  HWY_DYNAMIC_DISPATCH(ea_forward_simd)(args);
}

}  // namespace elwise::cpu
#endif
