#include "ops/dropout.h"

#include "autograd/node.h"
#include "core/dispatch.h"
#include "ops/argument_checks.h"
#include "ops/dropout_kernels.h"

namespace elwise {
namespace {

Tensor dropped(const Tensor& x, double p, RandomStream stream) {
  const Tensor y = empty(x.shape(), x.options());
  ELWISE_DISPATCH(
      x.device(), dropout,
      {.dtype = x.dtype(), .x = x.data(), .y = y.data(), .count = x.count(), .p = p, .stream = stream});
  return y;
}

void fill_random(const char* op, const Tensor& x, Distribution distribution, double a, double b,
                 Generator& generator) {
  check_floating(op, "x", x);
  const RandomStream stream = generator.reserve(static_cast<uint64_t>(x.count()));
  ELWISE_DISPATCH(x.device(), random_fill,
                  {.dtype = x.dtype(),
                   .distribution = distribution,
                   .y = x.data(),
                   .count = x.count(),
                   .a = a,
                   .b = b,
                   .stream = stream});
  x.storage()->bump_version();
}

}  // namespace

Tensor dropout(const Tensor& x, double p, Generator& generator) {
  check_floating("dropout", "x", x);
  ELWISE_CHECK(p >= 0 && p < 1, "dropout: expected 0 <= p < 1, got ", p);
  if (p == 0) return x;
  const RandomStream stream = generator.reserve(static_cast<uint64_t>(x.count()));
  return record("dropout", {x}, dropped(x, p, stream), [p, stream](const BackwardContext& context) {
    return std::vector{dropped(context.gradient(), p, stream)};
  });
}

void fill_uniform(const Tensor& x, double low, double high, Generator& generator) {
  fill_random("fill_uniform", x, Distribution::uniform, low, high, generator);
}

void fill_normal(const Tensor& x, double mean, double deviation, Generator& generator) {
  fill_random("fill_normal", x, Distribution::normal, mean, deviation, generator);
}

Tensor rand(const Shape& shape, TensorOptions options, Generator& generator) {
  const Tensor x = empty(shape, options);
  fill_uniform(x, 0, 1, generator);
  return x;
}

Tensor randn(const Shape& shape, TensorOptions options, Generator& generator) {
  const Tensor x = empty(shape, options);
  fill_normal(x, 0, 1, generator);
  return x;
}

}  // namespace elwise
