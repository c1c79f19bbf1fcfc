#include "ops/optimizer_step_kernels.h"

#include "core/parallel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/optimizer_step.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "core/simd-inl.h"
#include "ops/cpu/row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE {
namespace {

/// The parameters of a step as they are computed with: of bf16, joined with their remainders where there are
/// any. What join_remainder and split_remainder do, by vectors.
template <class T>
struct Parameters {
  T* param;
  int16_t* remainder;

  template <class Arguments>
  explicit Parameters(const Arguments& args)
      : param(static_cast<T*>(args.param)), remainder(static_cast<int16_t*>(args.remainder)) {}

  template <class D>
  HWY_INLINE hn::VFromD<D> load(D d, int64_t i, int64_t n) const {
    const auto p = load_lanes(d, param + i, n);
    if constexpr (std::is_same_v<T, BFloat16>) {
      if (remainder != nullptr) {
        const hn::RebindToSigned<D> ds;
        const auto rest = hn::PromoteTo(ds, load_lanes(hn::Rebind<int16_t, D>(), remainder + i, n));
        const auto word = hn::BitCast(ds, p), joined = hn::Add(word, rest);
        const auto other_sign = hn::Lt(hn::Xor(joined, word), hn::Zero(ds));
        return hn::BitCast(d, hn::IfThenElse(other_sign, word, joined));
      }
    }
    return p;
  }

  template <class D>
  HWY_INLINE void store(D d, hn::VFromD<D> v, int64_t i, int64_t n) const {
    if constexpr (std::is_same_v<T, BFloat16>) {
      if (remainder != nullptr) {
        const hn::RebindToUnsigned<D> du;
        const hn::Rebind<uint16_t, D> d16;
        const auto is_nan = hn::RebindMask(du, hn::IsNaN(v));
        const auto word = hn::IfThenElse(is_nan, hn::Set(du, kNanWord), hn::BitCast(du, v));
        const auto rounded = hn::ShiftRight<16>(hn::Add(word, hn::Set(du, kHalfStep)));
        store_lanes(d16, hn::TruncateTo(d16, rounded), reinterpret_cast<uint16_t*>(param) + i, n);
        store_lanes(d16, hn::TruncateTo(d16, word), reinterpret_cast<uint16_t*>(remainder) + i, n);
        return;
      }
    }
    store_lanes(d, v, param + i, n);
  }
};

template <class T>
void adam_range(const AdamStep& args, int64_t begin, int64_t end) {
  const hn::ScalableTag<Compute<T>> d;
  const Parameters<T> params(args);
  const T* grad = static_cast<const T*>(args.grad);
  auto* mean = static_cast<Compute<T>*>(args.m);
  auto* square = static_cast<Compute<T>*>(args.v);
  const auto set = [d](double value) HWY_ATTR { return hn::Set(d, static_cast<Compute<T>>(value)); };
  const auto keep = set(args.decoupled ? 1 - args.lr * args.weight_decay : 1);
  const auto regularisation = set(args.weight_decay);
  const bool regularised = !args.decoupled && args.weight_decay != 0;
  const auto beta1 = set(args.beta1), rest1 = set(1 - args.beta1);
  const auto beta2 = set(args.beta2), rest2 = set(1 - args.beta2);
  const auto eps = set(args.eps), v_scale = set(args.v_scale), step_size = set(args.step_size);
  const bool adaptive = args.adaptive;
  for_each_vector(d, begin, end, [&](int64_t i, int64_t n) HWY_ATTR {
    const auto p = params.load(d, i, n);
    auto g = load_lanes(d, grad + i, n);
    if (regularised) g = hn::MulAdd(regularisation, p, g);
    const auto m = hn::MulAdd(beta1, load_lanes(d, mean + i, n), hn::Mul(rest1, g));
    const auto v = hn::MulAdd(beta2, load_lanes(d, square + i, n), hn::Mul(hn::Mul(rest2, g), g));
    const auto move = adaptive ? hn::Div(m, hn::MulAdd(hn::Sqrt(v), v_scale, eps)) : m;
    store_lanes(d, m, mean + i, n);
    store_lanes(d, v, square + i, n);
    params.store(d, hn::NegMulAdd(step_size, move, hn::Mul(p, keep)), i, n);
  });
}

template <class T>
void sgd_range(const SgdStep& args, int64_t begin, int64_t end) {
  const hn::ScalableTag<Compute<T>> d;
  const Parameters<T> params(args);
  const T* grad = static_cast<const T*>(args.grad);
  auto* velocity = args.momentum == 0 ? nullptr : static_cast<Compute<T>*>(args.velocity);
  const auto lr = hn::Set(d, static_cast<Compute<T>>(args.lr));
  const auto weight_decay = hn::Set(d, static_cast<Compute<T>>(args.weight_decay));
  const auto momentum = hn::Set(d, static_cast<Compute<T>>(args.momentum));
  const bool regularised = args.weight_decay != 0, nesterov = args.nesterov, first = args.first;
  for_each_vector(d, begin, end, [&](int64_t i, int64_t n) HWY_ATTR {
    const auto p = params.load(d, i, n);
    auto g = load_lanes(d, grad + i, n);
    if (regularised) g = hn::MulAdd(weight_decay, p, g);
    if (velocity != nullptr) {
      const auto v = first ? g : hn::MulAdd(momentum, load_lanes(d, velocity + i, n), g);
      store_lanes(d, v, velocity + i, n);
      g = nesterov ? hn::MulAdd(momentum, v, g) : v;
    }
    params.store(d, hn::NegMulAdd(lr, g, p), i, n);
  });
}

void adam_step(const AdamStep& args) {
  dispatch_f32_f64_bf16(args.dtype, "adam_step", [&]<class T>() {
    parallel_for(args.count, kElementsPerThread,
                 [&](int64_t begin, int64_t end) { adam_range<T>(args, begin, end); });
  });
}

void sgd_step(const SgdStep& args) {
  dispatch_f32_f64_bf16(args.dtype, "sgd_step", [&]<class T>() {
    parallel_for(args.count, kElementsPerThread,
                 [&](int64_t begin, int64_t end) { sgd_range<T>(args, begin, end); });
  });
}

template <class T>
void squares(const SumOfSquares& args) {
  const hn::ScalableTag<Compute<T>> d;
  const T* x = static_cast<const T*>(args.x);
  *args.result = parallel_sum_terms(d, args.count, [=](int64_t i, int64_t n) HWY_ATTR {
    const auto v = load_lanes(d, x + i, n);
    return hn::Mul(v, v);
  });
}

void sum_of_squares(const SumOfSquares& args) {
  dispatch_f32_f64_bf16(args.dtype, "sum_of_squares", [&]<class T>() { squares<T>(args); });
}

}  // namespace
}  // namespace elwise::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace elwise::cpu {

HWY_EXPORT(adam_step);
HWY_EXPORT(sgd_step);
HWY_EXPORT(sum_of_squares);

void adam_step(const AdamStep& args) {
  HWY_DYNAMIC_DISPATCH(adam_step)(args);
}

void sgd_step(const SgdStep& args) {
  HWY_DYNAMIC_DISPATCH(sgd_step)(args);
}

void sum_of_squares(const SumOfSquares& args) {
  HWY_DYNAMIC_DISPATCH(sum_of_squares)(args);
}

}  // namespace elwise::cpu
#endif
