#include "ops/loss_kernels.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "core/parallel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/loss.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "core/simd-inl.h"
#include "ops/cpu/row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE {
namespace {

/// The rows whose target is not ignore_index. Throws Error for another target outside [0, classes).
int64_t count_targets(const int64_t* target, int64_t rows, int64_t classes, int64_t ignore_index) {
  int64_t counted = 0;
  for (int64_t r = 0; r < rows; ++r) {
    if (target[r] == ignore_index) continue;
    ELWISE_CHECK(target[r] >= 0 && target[r] < classes, "cross_entropy: target ", target[r], " at row ", r,
                 " is outside [0, ", classes, ")");
    ++counted;
  }
  return counted;
}

template <class T>
void cross_entropy_forward_rows(const CrossEntropyForward& args) {
  const hn::ScalableTag<Compute<T>> d;
  const int64_t counted = count_targets(args.target, args.rows, args.classes, args.ignore_index);
  auto* logsumexp = static_cast<Compute<T>*>(args.logsumexp);
  auto* row_loss = static_cast<Compute<T>*>(args.row_loss);
  parallel_for(args.rows, rows_per_thread(args.classes), [&](int64_t begin, int64_t end) HWY_ATTR {
    for (int64_t r = begin; r < end; ++r) {
      logsumexp[r] = row_loss[r] = 0;
      if (args.target[r] == args.ignore_index) continue;
      const T* x = static_cast<const T*>(args.logits) + r * args.classes;
      const Compute<T> largest =
          max_terms(d, args.classes, [&](int64_t i, int64_t n) HWY_ATTR { return load_lanes(d, x + i, n); });
      const auto shift = hn::Set(d, largest);
      const double sum = sum_terms(d, 0, args.classes, [&](int64_t i, int64_t n) HWY_ATTR {
        prefetch_far(x + args.classes + i);
        return ExpOfDifference(d, load_lanes(d, x + i, n), shift);
      });
      const double logarithm = std::log(sum);
      const auto at_target = static_cast<Compute<T>>(x[args.target[r]]);
      logsumexp[r] = static_cast<Compute<T>>(largest + logarithm);
      row_loss[r] = static_cast<Compute<T>>(static_cast<double>(largest) - at_target + logarithm);
    }
  });
  double total = 0;
  for (int64_t r = 0; r < args.rows; ++r) total += row_loss[r];
  *static_cast<Compute<T>*>(args.loss) =
      static_cast<Compute<T>>(counted == 0 ? 0 : total / static_cast<double>(counted));
}

template <class T>
void cross_entropy_backward_rows(const CrossEntropyBackward& args) {
  const hn::ScalableTag<Compute<T>> d;
  const int64_t counted = count_targets(args.target, args.rows, args.classes, args.ignore_index);
  const double scale = *static_cast<const Compute<T>*>(args.dloss) / static_cast<double>(counted);
  const bool stream = may_stream_inside<T>(args.rows, args.classes);
  parallel_for(args.rows, rows_per_thread(args.classes), [&](int64_t begin, int64_t end) HWY_ATTR {
    for (int64_t r = begin; r < end; ++r) {
      const T* x = static_cast<const T*>(args.logits) + r * args.classes;
      T* dx = static_cast<T*>(args.dlogits) + r * args.classes;
      if (args.target[r] == args.ignore_index) {
        std::fill_n(dx, args.classes, T(0));
        continue;
      }
      const Compute<T> logsumexp = static_cast<const Compute<T>*>(args.logsumexp)[r];
      // expm1 keeps the digits of softmax - 1 where the target's softmax is close to 1.
      const double logit = static_cast<Compute<T>>(x[args.target[r]]);
      const double at_target = std::expm1(logit - logsumexp) * scale;
      const auto shift = hn::Set(d, logsumexp);
      const auto scale_lanes = hn::Set(d, static_cast<Compute<T>>(scale));
      const auto gradient = [&](int64_t i, int64_t n, bool past_caches) HWY_ATTR {
        const auto e = ExpOfDifference(d, load_lanes(d, x + i, n), shift);
        store_lanes(d, hn::Mul(e, scale_lanes), dx + i, n, past_caches);
      };
      // Rows begin anywhere in a cache line: what shares one with another row is stored as usual.
      const int64_t first = stream ? std::min(to_next_line(dx), args.classes) : args.classes;
      const int64_t last = first + (args.classes - first) / kLine<T> * kLine<T>;
      for_each_vector(d, 0, first, [&](int64_t i, int64_t n) HWY_ATTR { gradient(i, n, false); });
      for_each_vector(d, first, last, [&](int64_t i, int64_t n) HWY_ATTR { gradient(i, n, true); });
      for_each_vector(d, last, args.classes, [&](int64_t i, int64_t n) HWY_ATTR { gradient(i, n, false); });
      dx[args.target[r]] = static_cast<T>(static_cast<Compute<T>>(at_target));
    }
    hwy::FlushStream();
  });
}

template <class T>
void pointwise_forward(const PointwiseLossForward& args) {
  const hn::ScalableTag<Compute<T>> d;
  const T* x = static_cast<const T*>(args.x);
  const T* target = static_cast<const T*>(args.target);
  const bool square = args.kind == PointwiseLoss::mse;
  const double sum = parallel_sum_terms(d, args.count, [=](int64_t i, int64_t n) HWY_ATTR {
    const auto difference = hn::Sub(load_lanes(d, x + i, n), load_lanes(d, target + i, n));
    return square ? hn::Mul(difference, difference) : hn::Abs(difference);
  });
  *static_cast<Compute<T>*>(args.loss) = static_cast<Compute<T>>(sum / static_cast<double>(args.count));
}

template <class T>
void pointwise_backward(const PointwiseLossBackward& args) {
  const hn::ScalableTag<Compute<T>> d;
  const T* x = static_cast<const T*>(args.x);
  const T* target = static_cast<const T*>(args.target);
  T* dx = static_cast<T*>(args.dx);
  const bool square = args.kind == PointwiseLoss::mse;
  const double scale = *static_cast<const Compute<T>*>(args.dloss) / static_cast<double>(args.count);
  const auto scale_lanes = hn::Set(d, static_cast<Compute<T>>(square ? 2 * scale : scale));
  const auto one = hn::Set(d, Compute<T>(1));
  parallel_for(args.count, kElementsPerThread, [&](int64_t begin, int64_t end) HWY_ATTR {
    for_each_vector(d, begin, end, [&](int64_t i, int64_t n) HWY_ATTR {
      const auto difference = hn::Sub(load_lanes(d, x + i, n), load_lanes(d, target + i, n));
      // The derivative of |u|: 0 at 0 and NaN at NaN, both of which are u itself.
      const auto other = hn::Gt(hn::Abs(difference), hn::Zero(d));
      const auto sign = hn::IfThenElse(other, hn::CopySign(one, difference), difference);
      store_lanes(d, hn::Mul(square ? difference : sign, scale_lanes), dx + i, n);
    });
  });
}

void cross_entropy_forward(const CrossEntropyForward& args) {
  dispatch_f32_f64_bf16(args.dtype, "cross_entropy_forward",
                        [&]<class T>() { cross_entropy_forward_rows<T>(args); });
}

void cross_entropy_backward(const CrossEntropyBackward& args) {
  dispatch_f32_f64_bf16(args.dtype, "cross_entropy_backward",
                        [&]<class T>() { cross_entropy_backward_rows<T>(args); });
}

void pointwise_loss_forward(const PointwiseLossForward& args) {
  dispatch_f32_f64_bf16(args.dtype, "pointwise_loss_forward", [&]<class T>() { pointwise_forward<T>(args); });
}

void pointwise_loss_backward(const PointwiseLossBackward& args) {
  dispatch_f32_f64_bf16(args.dtype, "pointwise_loss_backward",
                        [&]<class T>() { pointwise_backward<T>(args); });
}

}  // namespace
}  // namespace elwise::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace elwise::cpu {

HWY_EXPORT(cross_entropy_forward);
HWY_EXPORT(cross_entropy_backward);
HWY_EXPORT(pointwise_loss_forward);
HWY_EXPORT(pointwise_loss_backward);

void cross_entropy_forward(const CrossEntropyForward& args) {
  HWY_DYNAMIC_DISPATCH(cross_entropy_forward)(args);
}

void cross_entropy_backward(const CrossEntropyBackward& args) {
  HWY_DYNAMIC_DISPATCH(cross_entropy_backward)(args);
}

void pointwise_loss_forward(const PointwiseLossForward& args) {
  HWY_DYNAMIC_DISPATCH(pointwise_loss_forward)(args);
}

void pointwise_loss_backward(const PointwiseLossBackward& args) {
  HWY_DYNAMIC_DISPATCH(pointwise_loss_backward)(args);
}

}  // namespace elwise::cpu
#endif
