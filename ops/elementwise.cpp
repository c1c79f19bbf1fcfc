#include "ops/elementwise.h"

#include <numeric>

#include "autograd/engine.h"
#include "autograd/node.h"
#include "core/dispatch.h"
#include "ops/argument_checks.h"
#include "ops/loop_nest.h"
#include "ops/reduce.h"

namespace elwise {
namespace {

Tensor unary(const char* name, UnaryOp op, const Tensor& x, double p0 = 0, double p1 = 0) {
  check_floating(name, "x", x);
  const Tensor y = empty(x.shape(), x.options());
  ELWISE_DISPATCH(
      x.device(), unary_forward,
      {.dtype = x.dtype(), .op = op, .x = x.data(), .y = y.data(), .count = x.count(), .p0 = p0, .p1 = p1});
  const GradientSource source = gradient_source(op);
  const Tensor used = source == GradientSource::nothing ? Tensor() : source == GradientSource::output ? y : x;
  return record(name, {x}, y, [=, saved = SavedTensor(used)](const BackwardContext& context) {
    const Tensor& dy = context.gradient();
    const Tensor& kept = saved.get().defined() ? saved.get() : dy;
    const Tensor dx = empty(dy.shape(), dy.options());
    ELWISE_DISPATCH(dy.device(), unary_backward,
                    {.dtype = dy.dtype(),
                     .op = op,
                     .saved = kept.data(),
                     .dy = dy.data(),
                     .dx = dx.data(),
                     .count = dy.count(),
                     .p0 = p0,
                     .p1 = p1});
    return std::vector{dx};
  });
}

/// op(a, b) without recording.
Tensor binary(const char* name, BinaryOp op, const Tensor& a, const Tensor& b) {
  check_floating(name, "a", a);
  check_same_kind(name, "a", a, "b", b);
  const Shape shape = broadcast(name, a.shape(), b.shape());
  const Tensor y = empty(shape, a.options());
  const LoopNest<2> nest(shape, {broadcast_strides(a.shape(), shape), broadcast_strides(b.shape(), shape)});
  ELWISE_DISPATCH(a.device(), binary_forward,
                  {.dtype = a.dtype(),
                   .op = op,
                   .a = a.data(),
                   .b = b.data(),
                   .y = y.data(),
                   .extents = nest.extents,
                   .a_strides = nest.strides[0],
                   .b_strides = nest.strides[1]});
  return y;
}

Tensor product(const Tensor& a, const Tensor& b) {
  return binary("mul", BinaryOp::mul, a, b);
}

/// maximum or minimum: the gradient goes to the side that won.
Tensor extremum(const char* name, BinaryOp op, const Tensor& a, const Tensor& b) {
  const Tensor y = binary(name, op, a, b);
  return record(
      name, {a, b}, y,
      [op, name, saved_a = SavedTensor(a), saved_b = SavedTensor(b)](const BackwardContext& context) {
        const Tensor &first = saved_a.get(), &second = saved_b.get(), &dy = context.gradient();
        const auto won = [&](const Tensor& x, const Tensor& other) {
          const bool larger = op == BinaryOp::maximum;
          const Tensor share = binary(name, BinaryOp::step, larger ? x : other, larger ? other : x);
          return sum_to(product(dy, share), x.shape());
        };
        return std::vector{context.needs(0) ? won(first, second) : Tensor(),
                           context.needs(1) ? won(second, first) : Tensor()};
      });
}

void check_condition(const char* name, const Tensor& condition, const Tensor& reference) {
  ELWISE_CHECK(condition.dtype() == DType::boolean && condition.device() == reference.device(), name,
               ": expected a condition of bool on ", reference.device(), ", got ", condition.dtype(), " on ",
               condition.device());
}

Tensor select(const char* name, const Tensor& condition, const Tensor& a, const Tensor& b) {
  check_floating(name, "a", a);
  check_same_kind(name, "a", a, "b", b);
  check_condition(name, condition, a);
  const Shape shape = broadcast(name, condition.shape(), broadcast(name, a.shape(), b.shape()));
  const Tensor y = empty(shape, a.options());
  const LoopNest<3> nest(shape, {broadcast_strides(condition.shape(), shape),
                                 broadcast_strides(a.shape(), shape), broadcast_strides(b.shape(), shape)});
  ELWISE_DISPATCH(a.device(), where,
                  {.dtype = a.dtype(),
                   .condition = static_cast<const bool*>(condition.data()),
                   .a = a.data(),
                   .b = b.data(),
                   .y = y.data(),
                   .extents = nest.extents,
                   .condition_strides = nest.strides[0],
                   .a_strides = nest.strides[1],
                   .b_strides = nest.strides[2]});
  return y;
}

}  // namespace

Tensor add(const Tensor& a, const Tensor& b) {
  return record("add", {a, b}, binary("add", BinaryOp::add, a, b),
                [a_shape = a.shape(), b_shape = b.shape()](const BackwardContext& context) {
                  const Tensor& dy = context.gradient();
                  return std::vector{context.needs(0) ? sum_to(dy, a_shape) : Tensor(),
                                     context.needs(1) ? sum_to(dy, b_shape) : Tensor()};
                });
}

Tensor sub(const Tensor& a, const Tensor& b) {
  return record("sub", {a, b}, binary("sub", BinaryOp::sub, a, b),
                [a_shape = a.shape(), b_shape = b.shape()](const BackwardContext& context) {
                  const Tensor& dy = context.gradient();
                  return std::vector{context.needs(0) ? sum_to(dy, a_shape) : Tensor(),
                                     context.needs(1) ? neg(sum_to(dy, b_shape)) : Tensor()};
                });
}

Tensor mul(const Tensor& a, const Tensor& b) {
  return record("mul", {a, b}, product(a, b),
                [saved_a = SavedTensor(a), saved_b = SavedTensor(b)](const BackwardContext& context) {
                  const Tensor &first = saved_a.get(), &second = saved_b.get(), &dy = context.gradient();
                  return std::vector{
                      context.needs(0) ? sum_to(product(dy, second), first.shape()) : Tensor(),
                      context.needs(1) ? sum_to(product(dy, first), second.shape()) : Tensor()};
                });
}

Tensor div(const Tensor& a, const Tensor& b) {
  const Tensor y = binary("div", BinaryOp::div, a, b);
  return record(
      "div", {a, b}, y,
      [a_shape = a.shape(), saved_b = SavedTensor(b),
       saved_y = SavedTensor(y)](const BackwardContext& context) {
        const Tensor &divisor = saved_b.get(), &dy = context.gradient();
        const auto divided = [&](const Tensor& x) { return binary("div", BinaryOp::div, x, divisor); };
        // db = -sum(dy y / b), with b out of the sum.
        return std::vector{
            context.needs(0) ? sum_to(divided(dy), a_shape) : Tensor(),
            context.needs(1) ? neg(divided(sum_to(product(dy, saved_y.get()), divisor.shape()))) : Tensor()};
      });
}

Tensor maximum(const Tensor& a, const Tensor& b) {
  return extremum("maximum", BinaryOp::maximum, a, b);
}
Tensor minimum(const Tensor& a, const Tensor& b) {
  return extremum("minimum", BinaryOp::minimum, a, b);
}

Tensor add(const Tensor& x, double scalar) {
  return unary("add", UnaryOp::add_scalar, x, scalar);
}
Tensor mul(const Tensor& x, double scalar) {
  return unary("mul", UnaryOp::mul_scalar, x, scalar);
}
Tensor neg(const Tensor& x) {
  return unary("neg", UnaryOp::neg, x);
}
Tensor abs(const Tensor& x) {
  return unary("abs", UnaryOp::abs, x);
}
Tensor exp(const Tensor& x) {
  return unary("exp", UnaryOp::exp, x);
}
Tensor log(const Tensor& x) {
  return unary("log", UnaryOp::log, x);
}
Tensor sqrt(const Tensor& x) {
  return unary("sqrt", UnaryOp::sqrt, x);
}
Tensor tanh(const Tensor& x) {
  return unary("tanh", UnaryOp::tanh, x);
}
Tensor sigmoid(const Tensor& x) {
  return unary("sigmoid", UnaryOp::sigmoid, x);
}
Tensor relu(const Tensor& x) {
  return unary("relu", UnaryOp::relu, x);
}
Tensor elu(const Tensor& x) {
  return unary("elu", UnaryOp::elu, x);
}

Tensor clamp(const Tensor& x, double low, double high) {
  ELWISE_CHECK(low <= high, "clamp: expected low <= high, got ", low, " and ", high);
  return unary("clamp", UnaryOp::clamp, x, low, high);
}

Tensor pow(const Tensor& x, int exponent) {
  return unary("pow", UnaryOp::power, x, exponent);
}

Tensor gelu(const Tensor& x, Gelu kind) {
  return unary("gelu", kind == Gelu::exact ? UnaryOp::gelu : UnaryOp::gelu_tanh, x);
}

Tensor where(const Tensor& condition, const Tensor& a, const Tensor& b) {
  return record("where", {a, b}, select("where", condition, a, b),
                [a_shape = a.shape(), b_shape = b.shape(),
                 saved = SavedTensor(condition)](const BackwardContext& context) {
                  const Tensor &chosen = saved.get(), &dy = context.gradient();
                  const Tensor zero = zeros({}, dy.options());
                  return std::vector{
                      context.needs(0) ? sum_to(select("where", chosen, dy, zero), a_shape) : Tensor(),
                      context.needs(1) ? sum_to(select("where", chosen, zero, dy), b_shape) : Tensor()};
                });
}

Tensor masked_fill(const Tensor& x, const Tensor& mask, double value) {
  check_floating("masked_fill", "x", x);
  ELWISE_CHECK(broadcast("masked_fill", x.shape(), mask.shape()) == x.shape(), "masked_fill: mask ",
               mask.shape(), " does not broadcast to x ", x.shape());
  return where(mask, full({}, value, x.options()), x);
}

Tensor cast(const Tensor& x, DType dtype) {
  const Tensor y = empty(x.shape(), {.dtype = dtype, .device = x.device()});
  ELWISE_DISPATCH(x.device(), cast,
                  {.from = x.dtype(), .to = dtype, .x = x.data(), .y = y.data(), .count = x.count()});
  if (!is_floating(dtype)) return y;
  return record("cast", {x}, y, [from = x.dtype()](const BackwardContext& context) {
    return std::vector{cast(context.gradient(), from)};
  });
}

Tensor to(const Tensor& x, Device device) {
  if (x.device() == device) return x;
  ELWISE_CHECK(x.device() != kMeta, "to: cannot copy from meta to ", device);
  const Tensor y = empty(x.shape(), {.dtype = x.dtype(), .device = device});
  if (device == kMeta) return y;
  copy_memory(y.data(), device, x.data(), x.device(), x.count() * size_of(x.dtype()));
  return record("to", {x}, y, [from = x.device()](const BackwardContext& context) {
    return std::vector{to(context.gradient(), from)};
  });
}

Tensor full(const Shape& shape, double value, TensorOptions options) {
  const Tensor result = empty(shape, options);
  ELWISE_DISPATCH(options.device, fill,
                  {.dtype = options.dtype, .y = result.data(), .count = result.count(), .value = value});
  return result;
}

Tensor zeros(const Shape& shape, TensorOptions options) {
  return full(shape, 0, options);
}
Tensor ones(const Shape& shape, TensorOptions options) {
  return full(shape, 1, options);
}
Tensor zeros_like(const Tensor& like) {
  return full(like.shape(), 0, like.options());
}
Tensor ones_like(const Tensor& like) {
  return full(like.shape(), 1, like.options());
}

Tensor arange(int64_t count, TensorOptions options) {
  if (options.device == kMeta) return empty({count}, options);
  std::vector<int64_t> values(static_cast<size_t>(count));
  std::iota(values.begin(), values.end(), int64_t{0});
  const Tensor result = to(from_vector(values, {count}), options.device);
  return options.dtype == DType::i64 ? result : cast(result, options.dtype);
}

void fill(const Tensor& x, double value) {
  ELWISE_DISPATCH(x.device(), fill, {.dtype = x.dtype(), .y = x.data(), .count = x.count(), .value = value});
  x.storage()->bump_version();
}

void accumulate(const Tensor& into, const Tensor& value) {
  check_floating("accumulate", "into", into);
  check_same_kind("accumulate", "into", into, "value", value);
  check_shape("accumulate", "value", value, into.shape());
  const LoopNest<1> nest(into.shape(), {dense_strides(into.shape())});
  ELWISE_DISPATCH(into.device(), binary_forward,
                  {.dtype = into.dtype(),
                   .op = BinaryOp::add,
                   .a = into.data(),
                   .b = value.data(),
                   .y = into.data(),
                   .extents = nest.extents,
                   .a_strides = nest.strides[0],
                   .b_strides = nest.strides[0]});
  into.storage()->bump_version();
}

}  // namespace elwise
