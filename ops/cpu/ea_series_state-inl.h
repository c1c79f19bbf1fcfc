// How the EA-series kernels read and write the state of the recurrent form. Included after
// <hwy/foreach_target.h>, compiled once per target.

#if defined(ELWISE_OPS_CPU_EA_SERIES_STATE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef ELWISE_OPS_CPU_EA_SERIES_STATE_INL_H_
#undef ELWISE_OPS_CPU_EA_SERIES_STATE_INL_H_
#else
#define ELWISE_OPS_CPU_EA_SERIES_STATE_INL_H_
#endif

#include "ops/cpu/ea_series-inl.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE::ea_series {

/// States [.., channels, order + 1], or none, and the rows of a vector's Moments.
template <class T>
class ChannelStates {
 public:
  HWY_INLINE ChannelStates(const EaSeriesStatePointers& state, int order)
      : s_(static_cast<T*>(state.s)),
        z_(static_cast<T*>(state.z)),
        kappa_(static_cast<T*>(state.kappa)),
        terms_(order + 1) {}

  /// rows [2 t + 3, kLanes] of `lanes` channels from `channel` on: no keys where there is no state, and in
  /// the other lanes.
  HWY_INLINE void read(int64_t channel, int64_t lanes, T* rows) const {
    T* kappa = rows + 2 * terms_ * kLanes<T>;
    if (s_ == nullptr) lanes = 0;
    if (lanes < kLanes<T>) {
      std::fill_n(rows, kappa - rows, T(0));
      std::fill_n(kappa, kLanes<T>, std::numeric_limits<T>::infinity());
    }
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const int64_t at = (channel + lane) * terms_;
      for (int64_t n = 0; n < terms_; ++n) {
        rows[n * kLanes<T> + lane] = s_[at + n];
        rows[(terms_ + n) * kLanes<T> + lane] = z_[at + n];
      }
    }
    if (lanes > 0) std::copy_n(kappa_ + channel, lanes, kappa);
  }

  HWY_INLINE void write(int64_t channel, int64_t lanes, const T* rows) const {
    if (s_ == nullptr) return;
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const int64_t at = (channel + lane) * terms_;
      for (int64_t n = 0; n < terms_; ++n) {
        s_[at + n] = rows[n * kLanes<T> + lane];
        z_[at + n] = rows[(terms_ + n) * kLanes<T> + lane];
      }
    }
    std::copy_n(rows + 2 * terms_ * kLanes<T>, lanes, kappa_ + channel);
  }

 private:
  T* s_;
  T* z_;
  T* kappa_;
  int64_t terms_;  // as many of S as of Z
};

}  // namespace elwise::cpu::HWY_NAMESPACE::ea_series
HWY_AFTER_NAMESPACE();

#endif
