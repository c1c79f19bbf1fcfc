// The short way of the causal EA-series kernels: rows at which nothing rare happens. Included after
// <hwy/foreach_target.h>, compiled once per target.

#if defined(ELWISE_OPS_CPU_EA_SERIES_STEADY_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ELWISE_OPS_CPU_EA_SERIES_STEADY_INL_H_
#undef ELWISE_OPS_CPU_EA_SERIES_STEADY_INL_H_
#else
#define ELWISE_OPS_CPU_EA_SERIES_STEADY_INL_H_
#endif

#include "ops/cpu/ea_series-inl.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE::ea_series {

/// Whether rows have a short way when they are steady. It saves arithmetic but touches q and k twice: an
/// order below 4 is bound by the memory. f64 is for checks and higher orders are rare: without it the library
/// stays small.
template <class T, int kOrder>
inline constexpr bool kHasSteadyRows = sizeof(T) == sizeof(float) && kOrder >= 4 && kOrder <= 8;

/// Rows that are steady together: so few that the first-level cache keeps them between two passes.
inline constexpr int64_t kSteadyRows = 8;

/// Writes the weights of the keys of rows [begin, end) and lowers kappa, if the rows are steady: all visible,
/// no key moves the reference or is larger than `key_limit`, and Horner's rule will do for every query. This
/// is a pass of its own, as the exponential is one long chain of instructions: between a row's sums the
/// processor's window would hold too few of them to keep its arithmetic busy.
template <class T, int kOrder, class Rows>
HWY_INLINE bool weigh_steady_rows(const Rows& rows, int64_t begin, int64_t end, Moments<T, kOrder>& moments,
                                  Vec<T> key_limit, T* weights) {
  const Tag<T> d;
  bool all_visible = true;  // not by a function: the moments would have to leave their registers for it
  for (int64_t row = begin; row < end; ++row) all_visible &= rows.visible[row];
  if (!all_visible) return false;
  Vec<T> kappa = moments.kappa, largest_key = hn::Zero(d), largest_query = hn::Zero(d);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t at = row * rows.stride;
    const Vec<T> magnitude = hn::Abs(hn::LoadU(d, rows.k + at));
    kappa = hn::Min(kappa, magnitude);
    // Max passes over a NaN in its first operand, or keeps it: either way what else is large is found.
    largest_key = hn::Max(magnitude, largest_key);
    largest_query = hn::Max(hn::Abs(hn::LoadU(d, rows.q + at)), largest_query);
    hn::Store(scale_ratio<T>(moments.reference, magnitude), d, weights + (row - begin) * kLanes<T>);
  }
  if (!hn::AllFalse(d, hn::Lt(kappa, moments.reference)) || !moments.is_direct(largest_query) ||
      !hn::AllTrue(d, hn::Le(largest_key, key_limit))) {
    return false;
  }
  moments.kappa = kappa;
  return true;
}

}  // namespace elwise::cpu::HWY_NAMESPACE::ea_series
HWY_AFTER_NAMESPACE();

#endif
