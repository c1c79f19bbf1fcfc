#include <cstdint>

#include "core/parallel.h"
#include "ops/cpu/elements.h"
#include "ops/elementwise_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/elementwise_unary.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "core/simd-inl.h"
#include "ops/cpu/gelu-inl.h"
#include "ops/cpu/row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE {
namespace {

/// What an op needs besides its operands: the parameters p0, p1 as vectors and, for power, as the exponent.
template <UnaryOp op, class D>
struct Parameters {
  hn::VFromD<D> p0, p1;
  int64_t exponent;
};

template <class D>
struct Parameters<UnaryOp::gelu, D> {
  ExactGelu<D> gelu;
};

/// x^n by repeated multiplication (by squaring); 1 / x^-n for n < 0, 1 for n = 0.
template <class D, class V = hn::VFromD<D>>
HWY_INLINE V power(D d, V x, int64_t n) {
  const V one = hn::Set(d, hn::TFromD<D>(1));
  V product = one, square = x;
  for (uint64_t rest = n < 0 ? -static_cast<uint64_t>(n) : static_cast<uint64_t>(n); rest != 0;) {
    if (rest & 1) product = hn::Mul(product, square);
    rest >>= 1;
    if (rest != 0) square = hn::Mul(square, square);
  }
  return n < 0 ? hn::Div(one, product) : product;
}

/// 2u of gelu_tanh(x) = x / 2 (1 + tanh u) = x sigmoid(2u), u = sqrt(2 / pi) (x + 0.044715 x^3).
template <class D, class V = hn::VFromD<D>>
HWY_INLINE V gelu_tanh_argument(D d, V x) {
  using T = hn::TFromD<D>;
  const V cubic = hn::MulAdd(hn::Mul(x, x), hn::Set(d, T(1.5957691216057308 * 0.044715)),
                             hn::Set(d, T(1.5957691216057308)));
  return hn::Mul(x, cubic);
}

/// op(x).
template <UnaryOp op, class D, class V = hn::VFromD<D>>
HWY_INLINE V forward(D d, V x, const Parameters<op, D>& p) {
  const V zero = hn::Zero(d);
  if constexpr (op == UnaryOp::neg) return hn::Neg(x);
  if constexpr (op == UnaryOp::abs) return hn::Abs(x);
  if constexpr (op == UnaryOp::exp) return Exp(d, x);
  if constexpr (op == UnaryOp::log) return Log(d, x);
  if constexpr (op == UnaryOp::sqrt) return hn::Sqrt(x);
  if constexpr (op == UnaryOp::tanh) return Tanh(d, x);
  if constexpr (op == UnaryOp::sigmoid) return Sigmoid(d, x);
  if constexpr (op == UnaryOp::relu) return hn::IfThenZeroElse(hn::Le(x, zero), x);
  if constexpr (op == UnaryOp::elu) {
    const auto positive = hn::Gt(x, zero);
    return hn::IfThenElse(positive, x, ExpMinusOneNonPositive(d, hn::IfThenZeroElse(positive, x)));
  }
  if constexpr (op == UnaryOp::gelu) return p.gelu.value(x);
  if constexpr (op == UnaryOp::gelu_tanh) return hn::Mul(x, Sigmoid(d, gelu_tanh_argument(d, x)));
  if constexpr (op == UnaryOp::clamp) {
    const V raised = hn::IfThenElse(hn::Lt(x, p.p0), p.p0, x);
    return hn::IfThenElse(hn::Gt(raised, p.p1), p.p1, raised);
  }
  if constexpr (op == UnaryOp::power) return power(d, x, p.exponent);
  if constexpr (op == UnaryOp::add_scalar) return hn::Add(x, p.p0);
  if constexpr (op == UnaryOp::mul_scalar) return hn::Mul(x, p.p0);
}

/// dy * op'(x), given s, which gradient_source(op) names.
template <UnaryOp op, class D, class V = hn::VFromD<D>>
HWY_INLINE V backward(D d, V s, V dy, const Parameters<op, D>& p) {
  using T = hn::TFromD<D>;
  const V zero = hn::Zero(d), one = hn::Set(d, T(1));
  if constexpr (op == UnaryOp::neg) return hn::Neg(dy);
  if constexpr (op == UnaryOp::abs) {
    const V sign = hn::IfThenElse(hn::Gt(s, zero), one, hn::IfThenElse(hn::Lt(s, zero), hn::Neg(one), s));
    return hn::Mul(dy, sign);
  }
  if constexpr (op == UnaryOp::exp) return hn::Mul(dy, s);
  if constexpr (op == UnaryOp::log) return hn::Div(dy, s);
  if constexpr (op == UnaryOp::sqrt) return hn::Div(dy, hn::Add(s, s));
  if constexpr (op == UnaryOp::tanh) return hn::Mul(dy, hn::NegMulAdd(s, s, one));
  if constexpr (op == UnaryOp::sigmoid) return hn::Mul(dy, hn::Mul(s, hn::Sub(one, s)));
  if constexpr (op == UnaryOp::relu) return hn::IfThenZeroElse(hn::Le(s, zero), dy);
  if constexpr (op == UnaryOp::elu) {
    const auto positive = hn::Gt(s, zero);
    return hn::IfThenElse(positive, dy, hn::Mul(dy, ExpNonPositive(d, hn::IfThenZeroElse(positive, s))));
  }
  if constexpr (op == UnaryOp::gelu) return hn::Mul(dy, p.gelu.derivative(s));
  if constexpr (op == UnaryOp::gelu_tanh) {
    const V sigma = Sigmoid(d, gelu_tanh_argument(d, s));
    const V slope = hn::MulAdd(hn::Mul(s, s), hn::Set(d, T(3 * 1.5957691216057308 * 0.044715)),
                               hn::Set(d, T(1.5957691216057308)));
    // In this order, for large |s| it is 0 times a finite slope, never 0 times infinity.
    const V spread = hn::Mul(s, hn::Mul(sigma, hn::Sub(one, sigma)));
    return hn::Mul(dy, hn::MulAdd(spread, slope, sigma));
  }
  if constexpr (op == UnaryOp::clamp) {
    return hn::IfThenElseZero(hn::And(hn::Ge(s, p.p0), hn::Le(s, p.p1)), dy);
  }
  if constexpr (op == UnaryOp::power) {
    if (p.exponent == 0) return zero;
    return hn::Mul(dy, hn::Mul(p.p0, power(d, s, p.exponent - 1)));
  }
  if constexpr (op == UnaryOp::add_scalar) return dy;
  if constexpr (op == UnaryOp::mul_scalar) return hn::Mul(dy, p.p0);
}

template <UnaryOp op, class D>
HWY_INLINE Parameters<op, D> parameters(D d, [[maybe_unused]] double p0, [[maybe_unused]] double p1,
                                        [[maybe_unused]] GeluCurve curve) {
  using T = hn::TFromD<D>;
  if constexpr (op == UnaryOp::gelu) {
    return {ExactGelu<D>(d, curve)};
  } else {
    const int64_t exponent = op == UnaryOp::power ? static_cast<int64_t>(p0) : 0;
    return {hn::Set(d, static_cast<T>(p0)), hn::Set(d, static_cast<T>(p1)), exponent};
  }
}

template <class T, UnaryOp op>
void forward_loop(const UnaryForward& args) {
  const T* x = static_cast<const T*>(args.x);
  T* y = static_cast<T*>(args.y);
  const bool stream = may_stream<T>(y, 1, args.count);
  parallel_elements(args.count, [&](int64_t begin, int64_t end) HWY_ATTR {
    const hn::ScalableTag<Compute<T>> d;
    const auto p = parameters<op>(d, args.p0, args.p1, GeluCurve::value);
    for_each_vector(d, begin, end, [&](int64_t i, int64_t n) HWY_ATTR {
      store_lanes(d, forward<op>(d, load_lanes(d, x + i, n), p), y + i, n, stream);
    });
    hwy::FlushStream();
  });
}

template <class T, UnaryOp op>
void backward_loop(const UnaryBackward& args) {
  const T* saved = static_cast<const T*>(args.saved);
  const T* dy = static_cast<const T*>(args.dy);
  T* dx = static_cast<T*>(args.dx);
  const bool stream = may_stream<T>(dx, 1, args.count);
  parallel_elements(args.count, [&](int64_t begin, int64_t end) HWY_ATTR {
    const hn::ScalableTag<Compute<T>> d;
    const auto p = parameters<op>(d, args.p0, args.p1, GeluCurve::derivative);
    for_each_vector(d, begin, end, [&](int64_t i, int64_t n) HWY_ATTR {
      const auto result = backward<op>(d, load_lanes(d, saved + i, n), load_lanes(d, dy + i, n), p);
      store_lanes(d, result, dx + i, n, stream);
    });
    hwy::FlushStream();
  });
}

/// Calls function.template operator()<op>().
template <class Function>
void dispatch_op(UnaryOp op, const Function& function) {
  switch (op) {
    case UnaryOp::neg:
      return function.template operator()<UnaryOp::neg>();
    case UnaryOp::abs:
      return function.template operator()<UnaryOp::abs>();
    case UnaryOp::exp:
      return function.template operator()<UnaryOp::exp>();
    case UnaryOp::log:
      return function.template operator()<UnaryOp::log>();
    case UnaryOp::sqrt:
      return function.template operator()<UnaryOp::sqrt>();
    case UnaryOp::tanh:
      return function.template operator()<UnaryOp::tanh>();
    case UnaryOp::sigmoid:
      return function.template operator()<UnaryOp::sigmoid>();
    case UnaryOp::relu:
      return function.template operator()<UnaryOp::relu>();
    case UnaryOp::elu:
      return function.template operator()<UnaryOp::elu>();
    case UnaryOp::gelu:
      return function.template operator()<UnaryOp::gelu>();
    case UnaryOp::gelu_tanh:
      return function.template operator()<UnaryOp::gelu_tanh>();
    case UnaryOp::clamp:
      return function.template operator()<UnaryOp::clamp>();
    case UnaryOp::power:
      return function.template operator()<UnaryOp::power>();
    case UnaryOp::add_scalar:
      return function.template operator()<UnaryOp::add_scalar>();
    case UnaryOp::mul_scalar:
      return function.template operator()<UnaryOp::mul_scalar>();
  }
}

void unary_forward_kernel(const UnaryForward& args) {
  dispatch_f32_f64_bf16(args.dtype, "unary_forward", [&]<class T>() {
    dispatch_op(args.op, [&]<UnaryOp op>() { forward_loop<T, op>(args); });
  });
}

void unary_backward_kernel(const UnaryBackward& args) {
  dispatch_f32_f64_bf16(args.dtype, "unary_backward", [&]<class T>() {
    dispatch_op(args.op, [&]<UnaryOp op>() { backward_loop<T, op>(args); });
  });
}

}  // namespace
}  // namespace elwise::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace elwise::cpu {

HWY_EXPORT(unary_forward_kernel);
HWY_EXPORT(unary_backward_kernel);

void unary_forward(const UnaryForward& args) {
  HWY_DYNAMIC_DISPATCH(unary_forward_kernel)(args);
}
void unary_backward(const UnaryBackward& args) {
  HWY_DYNAMIC_DISPATCH(unary_backward_kernel)(args);
}

}  // namespace elwise::cpu
#endif
