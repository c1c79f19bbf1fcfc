#include "ops/softmax_kernels.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "core/parallel.h"
#include "ops/cpu/thread_scratch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/softmax.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "core/simd-inl.h"
#include "ops/cpu/row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE {
namespace {

/// Lanes of d, true where visible[0 .. n - 1] is.
template <class D>
HWY_INLINE hn::MFromD<D> load_mask(D d, const bool* visible, int64_t n) {
  const hn::Rebind<uint8_t, D> d8;
  const hn::Rebind<uint32_t, D> d32;
  const auto wide = hn::PromoteTo(d32, load_lanes(d8, reinterpret_cast<const uint8_t*>(visible), n));
  if constexpr (sizeof(hn::TFromD<D>) == 4) {
    return hn::RebindMask(d, hn::Ne(wide, hn::Zero(d32)));
  } else {
    const hn::Rebind<uint64_t, D> d64;
    return hn::RebindMask(d, hn::Ne(hn::PromoteTo(d64, wide), hn::Zero(d64)));
  }
}

/// Where a row's exponentials stand until their sum is known: in y, but for those of bf16, which are rounded
/// once only, and where y is written past the caches.
template <class T>
Compute<T>* exponentials(T* y, int64_t count, bool stream) {
  if constexpr (std::is_same_v<T, Compute<T>>) {
    if (!stream) return y;
  }
  return thread_scratch<Compute<T>>(count);
}

/// y = softmax(x) over [0, count), of which `visible` hides some columns unless it is null (kMasked false).
/// What the hidden columns hold has no effect. `stream`: y bypasses the caches, in whole vectors, with zeros
/// from column `count` on.
template <class T, bool kMasked>
void softmax_row(const T* x, T* y, int64_t count, int64_t cols, const bool* visible, bool stream) {
  const hn::ScalableTag<Compute<T>> d;
  const auto hidden = hn::Set(d, -std::numeric_limits<Compute<T>>::infinity());
  const auto load_logits = [=](int64_t i, int64_t n) HWY_ATTR {
    const auto v = load_lanes(d, x + i, n);
    if constexpr (kMasked) {
      return hn::IfThenElse(load_mask(d, visible + i, n), v, hidden);
    } else {
      return v;
    }
  };
  Compute<T>* e = exponentials(y, count, stream);
  const auto largest = hn::Set(d, max_terms(d, count, load_logits));
  const double sum = sum_terms(d, 0, count, [&](int64_t i, int64_t n) HWY_ATTR {
    prefetch_far(x + cols + i);
    const auto v = ExpOfDifference(d, load_logits(i, n), largest);
    store_lanes(d, v, e + i, n);
    return v;
  });
  const auto scale = hn::Set(d, static_cast<Compute<T>>(1 / sum));
  for_each_vector(d, 0, count, [&](int64_t i, int64_t n) HWY_ATTR {
    auto v = hn::Mul(load_lanes(d, e + i, n), scale);
    if constexpr (kMasked) v = hn::IfThenElseZero(load_mask(d, visible + i, n), v);
    if (n < static_cast<int64_t>(hn::Lanes(d)))
      v = hn::IfThenElseZero(hn::FirstN(d, static_cast<size_t>(n)), v);
    store_lanes(d, v, y + i, n, stream);
  });
}

/// y = 0 from column `count` on, behind softmax_row. Nothing but streams if y does: an ordinary store would
/// wait for its cache line, and all others behind it.
template <class T>
void clear_rest(T* y, int64_t count, int64_t cols, bool stream) {
  if (!stream) {
    std::fill(y + count, y + cols, T());
    return;
  }
  const hn::ScalableTag<Compute<T>> d;
  const int64_t lanes = static_cast<int64_t>(hn::Lanes(d)), begin = (count + lanes - 1) / lanes * lanes;
  for_each_vector(d, begin, cols,
                  [&](int64_t i, int64_t n) HWY_ATTR { store_lanes(d, hn::Zero(d), y + i, n, true); });
}

template <class T>
void forward(const SoftmaxForward& args) {
  const int64_t cols = args.cols;
  const bool stream = may_stream<T>(args.y, args.rows, cols);
  parallel_for(args.rows, rows_per_thread(cols), [&](int64_t begin, int64_t end) HWY_ATTR {
    for (int64_t row = begin; row < end; ++row) {
      const T* x = static_cast<const T*>(args.x) + row * cols;
      T* y = static_cast<T*>(args.y) + row * cols;
      int64_t count = args.causal ? std::min(cols, row % args.queries + 1) : cols;
      if (args.key_mask == nullptr) {
        softmax_row<T, false>(x, y, count, cols, nullptr, stream);
      } else {
        const bool* visible = args.key_mask + row / (args.rows / args.batch) * cols;
        if (std::find(visible, visible + count, true) == visible + count) {
          count = 0;
        } else {
          softmax_row<T, true>(x, y, count, cols, visible, stream);
        }
      }
      clear_rest(y, count, cols, stream);
    }
    hwy::FlushStream();
  });
}

template <class T>
void backward_row(const T* y, const T* dy, T* dx, int64_t cols, bool stream) {
  const hn::ScalableTag<Compute<T>> d;
  const double sum = sum_terms(d, 0, cols, [&](int64_t i, int64_t n) HWY_ATTR {
    return hn::Mul(load_lanes(d, y + i, n), load_lanes(d, dy + i, n));
  });
  const auto dot = hn::Set(d, static_cast<Compute<T>>(sum));
  for_each_vector(d, 0, cols, [&](int64_t i, int64_t n) HWY_ATTR {
    const auto v = hn::Mul(load_lanes(d, y + i, n), hn::Sub(load_lanes(d, dy + i, n), dot));
    store_lanes(d, v, dx + i, n, stream);
  });
}

template <class T>
void backward(const SoftmaxBackward& args) {
  const bool stream = may_stream<T>(args.dx, args.rows, args.cols);
  parallel_for(args.rows, rows_per_thread(args.cols), [&](int64_t begin, int64_t end) HWY_ATTR {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t offset = row * args.cols;
      backward_row(static_cast<const T*>(args.y) + offset, static_cast<const T*>(args.dy) + offset,
                   static_cast<T*>(args.dx) + offset, args.cols, stream);
    }
    hwy::FlushStream();
  });
}

void softmax_forward(const SoftmaxForward& args) {
  dispatch_f32_f64_bf16(args.dtype, "softmax_forward", [&]<class T>() { forward<T>(args); });
}

void softmax_backward(const SoftmaxBackward& args) {
  dispatch_f32_f64_bf16(args.dtype, "softmax_backward", [&]<class T>() { backward<T>(args); });
}

}  // namespace
}  // namespace elwise::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace elwise::cpu {

HWY_EXPORT(softmax_forward);
HWY_EXPORT(softmax_backward);

void softmax_forward(const SoftmaxForward& args) {
  HWY_DYNAMIC_DISPATCH(softmax_forward)(args);
}

void softmax_backward(const SoftmaxBackward& args) {
  HWY_DYNAMIC_DISPATCH(softmax_backward)(args);
}

}  // namespace elwise::cpu
#endif
