// What the kernels of full element-wise attention share; ops/ea_kernels.h has the mathematics.
//
// Lanes are channels, so nothing crosses lanes. A task owns one vector of channels and walks tiles of queries
// and, within, tiles of keys. The visible rows of a key tile are packed side by side first: hidden keys then
// cost nothing, and a column whose rows are a tensor row apart would share a few sets of the L1 cache. The
// exponential bounds the speed; sums are blocked by tile. S is the element type of the tensors, T =
// Compute<S> that of vectors and sums.

#if defined(ELWISE_OPS_CPU_EA_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ELWISE_OPS_CPU_EA_INL_H_
#undef ELWISE_OPS_CPU_EA_INL_H_
#else
#define ELWISE_OPS_CPU_EA_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numbers>
#include <type_traits>

#include "core/parallel.h"
#include "core/simd-inl.h"
#include "ops/cpu/row-inl.h"
#include "ops/cpu/visible_keys.h"
#include "ops/ea_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE::ea {

using namespace elwise::HWY_NAMESPACE;
namespace hn = hwy::HWY_NAMESPACE;

inline constexpr int64_t kQueryTile = 256;
inline constexpr int64_t kKeyTile = 128;
static_assert(kKeyTile <= VisibleKeys::kMostKeys);

template <class T>
using Tag = hn::ScalableTag<T>;
template <class T>
using Vec = hn::Vec<Tag<T>>;
template <class T>
inline constexpr int64_t kLanes = hn::MaxLanes(Tag<T>());

/// Adjacent channels of one batch entry, at most a vector of them, down all rows.
template <class T>
struct Column {
  using Lane = Compute<std::remove_const_t<T>>;

  T* data;
  int64_t stride;  // elements from row to row
  int64_t width;   // channels

  HWY_INLINE Vec<Lane> load(int64_t row) const { return load_lanes(Tag<Lane>(), data + row * stride, width); }
  HWY_INLINE void store(int64_t row, Vec<Lane> value) const {
    store_lanes(Tag<Lane>(), value, data + row * stride, width);
  }
};

/// Where the task is: the first channel of one vector of channels in one batch entry.
template <class S, class Arguments>
struct Place {
  using T = Compute<S>;

  const Arguments& args;
  int64_t batch;
  int64_t channel;

  HWY_INLINE Column<const S> in(const void* tensor) const { return at(static_cast<const S*>(tensor)); }
  HWY_INLINE Column<S> out(void* tensor) const { return at(static_cast<S*>(tensor)); }
  /// The same of a tensor of sums.
  HWY_INLINE Column<const T> sums(const void* tensor) const { return at(static_cast<const T*>(tensor)); }
  HWY_INLINE Column<T> sums(void* tensor) const { return at(static_cast<T*>(tensor)); }

  template <class P>
  HWY_INLINE Column<P> at(P* tensor) const {
    return {.data = tensor + batch * args.length * args.channels + channel,
            .stride = args.channels,
            .width = std::min(kLanes<T>, args.channels - channel)};
  }
  /// Keys at and beyond this row are hidden from all queries before row `query_end`.
  HWY_INLINE int64_t key_end(int64_t query_end) const { return args.causal ? query_end : args.length; }
};

/// One vector for each of `kRows` rows, side by side.
template <class T, int64_t kRows>
struct Rows {
  HWY_ALIGN T lanes[kRows * kLanes<T>];

  HWY_INLINE Vec<T> get(int64_t row) const { return hn::Load(Tag<T>(), lanes + row * kLanes<T>); }
  HWY_INLINE void set(int64_t row, Vec<T> v) { hn::Store(v, Tag<T>(), lanes + row * kLanes<T>); }
  HWY_INLINE void fill(Vec<T> v, int64_t count) {
    for (int64_t row = 0; row < count; ++row) set(row, v);
  }
};

/// The keys before row `end`, in tiles.
template <class S, class Arguments>
VisibleKeys visible_keys(const Place<S, Arguments>& place, int64_t end) {
  const bool* mask = place.args.key_mask;
  return {mask ? mask + place.batch * place.args.length : nullptr, end, place.args.causal, kKeyTile};
}

/// The visible rows of a tile.
template <class S, class T>
HWY_INLINE void pack(const VisibleKeys& keys, const Column<const S>& column, Rows<T, kKeyTile>& packed) {
  for (int64_t j = 0; j < keys.count(); ++j) packed.set(j, column.load(keys.row(j)));
}

/// The closest key on either side of a query.
template <class T>
struct Neighbours {
  Vec<T> below, above;

  /// True where one of them lies within kEaNear of q.
  HWY_INLINE hn::Mask<Tag<T>> near(Vec<T> q) const {
    const auto distance = hn::Min(hn::Sub(q, below), hn::Sub(above, q));
    return hn::Le(distance, hn::Set(Tag<T>(), T(kEaNear)));
  }

  HWY_INLINE Vec<T> nearest(Vec<T> q) const {
    return hn::IfThenElse(hn::Le(hn::Sub(q, below), hn::Sub(above, q)), below, above);
  }

  /// Takes `count` more keys into account. Returns true, perhaps early, once all lanes are near.
  HWY_INLINE bool search(Vec<T> q, const Rows<T, kKeyTile>& k, int64_t count) {
    constexpr int64_t kStep = 8;
    for (int64_t begin = 0; begin < count; begin += kStep) {
      for (int64_t j = begin; j < std::min(begin + kStep, count); ++j) {
        const auto key = k.get(j);
        below = hn::IfThenElse(hn::Le(key, q), hn::Max(below, key), below);
        above = hn::IfThenElse(hn::Ge(key, q), hn::Min(above, key), above);
      }
      if (hn::AllTrue(Tag<T>(), near(q))) return true;
    }
    return false;
  }
};

/// The references r_i of the queries [begin, end), at most kQueryTile of them. As a rule all queries find a
/// near key among the first few. An exact search by side, not by rounded distance, so that no exponent is
/// positive.
template <class S, class Arguments, class T>
void find_references(const Place<S, Arguments>& place, int64_t begin, int64_t end,
                     Rows<T, kQueryTile>& reference) {
  const Tag<T> d;
  const auto q = place.in(place.args.q), k = place.in(place.args.k);
  const int64_t count = end - begin;
  Rows<T, kKeyTile> keys;
  Rows<T, kQueryTile> above;
  Rows<T, kQueryTile>& below = reference;
  bool all_near[kQueryTile] = {};
  below.fill(hn::Set(d, -std::numeric_limits<T>::infinity()), count);
  above.fill(hn::Set(d, std::numeric_limits<T>::infinity()), count);

  VisibleKeys visible = visible_keys(place, place.key_end(end));
  bool more = true;
  while (more && visible.next()) {
    pack(visible, k, keys);
    more = false;
    for (int64_t i = 0; i < count; ++i) {
      if (all_near[i]) continue;
      Neighbours<T> neighbours{below.get(i), above.get(i)};
      all_near[i] = neighbours.search(q.load(begin + i), keys, visible.seen_by(begin + i));
      below.set(i, neighbours.below);
      above.set(i, neighbours.above);
      more |= !all_near[i];
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    const Neighbours<T> neighbours{below.get(i), above.get(i)};
    const auto query = q.load(begin + i);
    reference.set(i, hn::IfThenElse(neighbours.near(query), query, neighbours.nearest(query)));
  }
}

/// A query and its reference.
template <class T>
struct Query {
  Vec<T> q, reference;

  HWY_INLINE Query(Vec<T> query, Vec<T> its_reference)
      : q(query), reference(its_reference), offset_(hn::Mul(hn::Sub(query, its_reference), log2_e())) {}

  /// w = exp((q - r)^2 - (q - k)^2), from `distance` = q - k and `displacement` = k - r.
  HWY_INLINE Vec<T> weight(Vec<T> distance, Vec<T> displacement) const {
    return Exp2NonPositive(Tag<T>(), hn::Mul(displacement, hn::MulAdd(distance, log2_e(), offset_)));
  }

 private:
  static HWY_INLINE Vec<T> log2_e() { return hn::Set(Tag<T>(), std::numbers::log2e_v<T>); }

  Vec<T> offset_;  // (q - r) log2(e)
};

constexpr int64_t tiles_of(int64_t size, int64_t tile) {
  return (size + tile - 1) / tile;
}

}  // namespace elwise::cpu::HWY_NAMESPACE::ea
HWY_AFTER_NAMESPACE();

#endif
