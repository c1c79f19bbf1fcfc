#include "ops/elementwise.h"

#include <bit>
#include <cmath>
#include <limits>
#include <numbers>

#include "tests/support/naive_elementwise.h"
#include "tests/support/op_variants.h"

namespace elwise::testing {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr DType kDTypes[] = {DType::f32, DType::f64, DType::bf16, DType::i64, DType::i16, DType::boolean};

/// An op of one input, which is drawn from [low, high), `gap` or more away from 0.
struct UnaryCase {
  std::string name;
  std::function<Tensor(const Tensor&)> op;
  std::function<double(double)> naive;
  double low = -2;
  double high = 2;
  double gap = 0;
};

std::function<double(double)> naive_of(UnaryOp op, double p0 = 0, double p1 = 0) {
  return [=](double x) { return naive::unary(op, x, p0, p1); };
}

std::vector<UnaryCase> unary_cases() {
  using T = const Tensor&;
  std::vector<UnaryCase> cases{
      {"neg", [](T x) { return neg(x); }, naive_of(UnaryOp::neg)},
      {"abs", [](T x) { return abs(x); }, naive_of(UnaryOp::abs), -2, 2, 0.01},
      {"exp", [](T x) { return exp(x); }, naive_of(UnaryOp::exp), -4, 4},
      {"log", [](T x) { return log(x); }, naive_of(UnaryOp::log), 0.3, 6},
      {"sqrt", [](T x) { return sqrt(x); }, naive_of(UnaryOp::sqrt), 0.3, 6},
      {"tanh", [](T x) { return tanh(x); }, naive_of(UnaryOp::tanh), -4, 4},
      {"sigmoid", [](T x) { return sigmoid(x); }, naive_of(UnaryOp::sigmoid), -8, 8},
      {"relu", [](T x) { return relu(x); }, naive_of(UnaryOp::relu), -2, 2, 0.01},
      {"elu", [](T x) { return elu(x); }, naive_of(UnaryOp::elu), -4, 4, 0.01},
      {"gelu", [](T x) { return gelu(x); }, naive_of(UnaryOp::gelu), -5, 5},
      {"gelu tanh", [](T x) { return gelu(x, Gelu::tanh); }, naive_of(UnaryOp::gelu_tanh), -5, 5},
      {"clamp", [](T x) { return clamp(x, -0.01, 0.01); }, naive_of(UnaryOp::clamp, -0.01, 0.01), -1, 1,
       0.02},
      {"clamp inside", [](T x) { return clamp(x, -1, 1); }, naive_of(UnaryOp::clamp, -1, 1), -0.99, 0.99},
      {"x + 2.5", [](T x) { return x + 2.5; }, naive_of(UnaryOp::add_scalar, 2.5)},
      {"2.5 + x", [](T x) { return 2.5 + x; }, naive_of(UnaryOp::add_scalar, 2.5)},
      {"x - 2.5", [](T x) { return x - 2.5; }, naive_of(UnaryOp::add_scalar, -2.5)},
      {"2.5 - x", [](T x) { return 2.5 - x; }, [](double x) { return 2.5 - x; }},
      {"x * 2.5", [](T x) { return x * 2.5; }, naive_of(UnaryOp::mul_scalar, 2.5)},
      {"2.5 * x", [](T x) { return 2.5 * x; }, naive_of(UnaryOp::mul_scalar, 2.5)},
      {"x / 2.5", [](T x) { return x / 2.5; }, [](double x) { return x / 2.5; }},
      {"2.5 / x", [](T x) { return 2.5 / x; }, [](double x) { return 2.5 / x; }, -2, 2, 0.5},
      {"-x", [](T x) { return -x; }, naive_of(UnaryOp::neg)},
  };
  for (int exponent = -3; exponent <= 8; ++exponent) {
    cases.push_back({"pow " + std::to_string(exponent), [=](T x) { return pow(x, exponent); },
                     naive_of(UnaryOp::power, exponent), -2, 2, exponent < 0 ? 0.5 : 0});
  }
  return cases;
}

OpTest test_of(const UnaryCase& unary, const Tensor& x) {
  return {.name = unary.name,
          .op = [unary](const std::vector<Tensor>& in) { return unary.op(in[0]); },
          .inputs = {x},
          .naive =
              [unary](const std::vector<Values>& in) {
                Values y = in[0];
                for (double& value : y) value = unary.naive(value);
                return y;
              }};
}

TEST_CASE("unary ops: values and gradients") {
  for (const UnaryCase& unary : unary_cases()) {
    const auto input = [&](const Shape& shape) {
      return uniform_beside(0, unary.gap, shape, unary.low, unary.high);
    };
    for (const int64_t size : kOddSizes) check_op_variants(test_of(unary, input({size})));
    check_op(test_of(unary, input({})));
    check_op(test_of(unary, input({0})));
    check_op(test_of(unary, input({2, 0, 3})));
  }
}

TEST_CASE("unary ops split a large tensor among threads") {
  for (const UnaryCase& unary : unary_cases()) {
    if (unary.name != "gelu" && unary.name != "pow 3" && unary.name != "-x") continue;
    check_op(test_of(unary, uniform({3, 33, 1027}, unary.low, unary.high)));
  }
}

TEST_CASE("unary ops: NaN, infinities, zeros and large values") {
  for (const UnaryCase& unary : unary_cases()) {
    for (const double x : {kNan, kInfinity, -kInfinity, 0.0, -0.0, 1.0, -1.0, 1e-30, 1000.0, -1000.0}) {
      for (const DType dtype : test_dtypes()) {
        const auto rounded = [dtype](double value) { return full({}, value, {.dtype = dtype}); };
        const double expected = unary.naive(values_of(rounded(x))[0]);
        // 19 copies: whole vectors and a rest.
        const Tensor y = unary.op(full({19}, x, {.dtype = dtype, .device = test_device()}));
        check_close(values_of(y), Values(19, values_of(rounded(expected))[0]), tolerance_of(dtype),
                    unary.name + " of " + std::to_string(x));
      }
    }
  }
}

TEST_CASE("unary ops: gradients at kinks and limits") {
  struct Case {
    std::string name;
    std::function<Tensor(const Tensor&)> op;
    double x, gradient;
  };
  using T = const Tensor&;
  const Case cases[] = {
      {"abs at 0", [](T x) { return abs(x); }, 0, 0},
      {"relu at 0", relu, 0, 0},
      {"elu at 0", elu, 0, 1},
      {"elu far below", elu, -1000, 0},
      {"clamp at low", [](T x) { return clamp(x, -1, 0.5); }, -1, 1},
      {"clamp at high", [](T x) { return clamp(x, -1, 0.5); }, 0.5, 1},
      {"clamp below", [](T x) { return clamp(x, -1, 0.5); }, -1.25, 0},
      {"clamp above", [](T x) { return clamp(x, -1, 0.5); }, 0.75, 0},
      {"clamp to a point", [](T x) { return clamp(x, 0.5, 0.5); }, 0.5, 1},
      {"pow 0 at 0", [](T x) { return pow(x, 0); }, 0, 0},
      {"pow 1 at 0", [](T x) { return pow(x, 1); }, 0, 1},
      {"pow 2 at 0", [](T x) { return pow(x, 2); }, 0, 0},
      {"exp far below", [](T x) { return exp(x); }, -1000, 0},
      {"tanh far above", [](T x) { return tanh(x); }, 1000, 0},
      {"sigmoid far below", sigmoid, -1000, 0},
      {"log at 0", [](T x) { return log(x); }, 0, kInfinity},
      {"sqrt at 0", [](T x) { return sqrt(x); }, 0, kInfinity},
      {"gelu far below", [](T x) { return gelu(x); }, -1000, 0},
      {"gelu far above", [](T x) { return gelu(x); }, 1000, 1},
      {"gelu tanh far below", [](T x) { return gelu(x, Gelu::tanh); }, -1e15, 0},
      {"gelu tanh far above", [](T x) { return gelu(x, Gelu::tanh); }, 1e15, 1},
  };
  for (const Case& each : cases) {
    for (const DType dtype : test_dtypes()) {
      const Tensor x = leaf(Values(19, each.x), {19}, dtype, test_device());
      each.op(x).backward(ones_like(x));
      check_close(values_of(x.grad()), Values(19, each.gradient), {0, 0}, each.name);
    }
  }
}

TEST_CASE("cast converts between all dtypes") {
  const Values numbers{0, 1, -1, 2.5, -3.75, 100, -0.5, 7, 2, 3};
  for (const DType from : kDTypes) {
    for (const DType to : kDTypes) {
      for (const int64_t size : kOddSizes) {
        Values repeated;
        for (int64_t i = 0; i < size; ++i)
          repeated.push_back(numbers[static_cast<size_t>(i) % numbers.size()]);
        // All of them fit every floating dtype; the first cast makes them fit `from`.
        const Tensor x = cast(elwise::to(from_vector(repeated, {size}), test_device()), from),
                     y = cast(x, to);
        Values expected = values_of(x);
        for (double& value : expected) {
          if (to == DType::i64 || to == DType::i16) value = std::trunc(value);
          if (to == DType::boolean) value = value != 0;
        }
        CHECK(y.dtype() == to);
        CHECK_MESSAGE(values_of(y) == expected, "cast ", from, " to ", to);
      }
    }
  }
}

TEST_CASE("cast of what an integer cannot hold gives its lowest value") {
  const Values values{NAN, INFINITY, -INFINITY, 1e30, -1e30, 32767.5, 32768, -32768, -32769};
  for (const DType from : {DType::f32, DType::f64}) {
    const Tensor x = cast(to(from_vector(values, {9}), test_device()), from);
    constexpr double kLowest = INT16_MIN;
    CHECK(values_of(cast(x, DType::i16)) ==
          Values{kLowest, kLowest, kLowest, kLowest, kLowest, 32767, kLowest, kLowest, kLowest});
    constexpr double kLowest64 = INT64_MIN;
    CHECK(values_of(cast(x, DType::i64)) ==
          Values{kLowest64, kLowest64, kLowest64, kLowest64, kLowest64, 32767, 32768, -32768, -32769});
  }
}

TEST_CASE("cast to bf16 rounds to nearest even and keeps NaN") {
  const std::vector<float> values{1.00390625F, 1.01171875F, 3.4e38F, 1e-40F,    -INFINITY, NAN,
                                  -0.0F,       1.001F,      3.1415F, -2.71828F, 1e30F,     65504.0F};
  for (const int64_t size : {12, 36, 60}) {
    std::vector<float> repeated;
    for (int64_t i = 0; i < size; ++i) repeated.push_back(values[static_cast<size_t>(i) % values.size()]);
    const Tensor y = to(cast(to(from_vector(repeated, {size}), test_device()), DType::bf16), kCpu);
    for (size_t i = 0; i < repeated.size(); ++i) {
      const BFloat16 value = y.data<BFloat16>()[i];
      // Devices differ in the bits of a NaN.
      CHECK((std::isnan(repeated[i]) ? std::isnan(static_cast<float>(value))
                                     : value.bits == BFloat16(repeated[i]).bits));
    }
  }
}

TEST_CASE("the gradient of a cast is cast back") {
  for (const DType from : {DType::f32, DType::f64, DType::bf16}) {
    for (const DType to : {DType::f32, DType::f64, DType::bf16}) {
      const Tensor x = leaf(values_of(on_grid({33})), {33}, from, test_device());
      const Tensor dy = elwise::to(on_grid({33}), test_device());
      cast(x, to).backward(cast(dy, to));
      CHECK(x.grad().dtype() == from);
      CHECK(values_of(x.grad()) == values_of(dy));
    }
  }
  CHECK_FALSE(cast(leaf({1}, {1}), DType::i64).requires_grad());
}

TEST_CASE("full, zeros, ones, arange and fill") {
  for (const DType dtype : kDTypes) {
    const TensorOptions options{.dtype = dtype, .device = test_device()};
    const double three = dtype == DType::boolean ? 1 : 3;
    for (const int64_t size : {0, 1, 33, 1027}) {
      const auto count = static_cast<size_t>(size);
      const Tensor x = full({size}, 3, options);
      CHECK(x.dtype() == dtype);
      CHECK(values_of(x) == Values(count, three));
      CHECK(values_of(zeros({size}, options)) == Values(count, 0));
      CHECK(values_of(ones({size}, options)) == Values(count, 1));
      CHECK(values_of(zeros_like(x)) == Values(count, 0));
      CHECK(values_of(ones_like(x)) == Values(count, 1));
      const int64_t version = x.storage()->version();
      fill(x, 1);
      CHECK(values_of(x) == Values(count, 1));
      CHECK(x.storage()->version() > version);
    }
    if (dtype != DType::boolean) CHECK(values_of(arange(4, options)) == Values{0, 1, 2, 3});
    CHECK(arange(4, {.dtype = dtype, .device = kMeta}).shape() == Shape{4});
  }
  CHECK(full({2, 3}, 1).dtype() == DType::f32);
  CHECK(arange(0).shape() == Shape{0});
  CHECK(std::isnan(full({}, kNan, {.device = test_device()}).item()));
}

TEST_CASE("fill and accumulate change a view in place, and nothing beside it") {
  for (const DType dtype : test_dtypes()) {
    const TensorOptions options{.dtype = dtype, .device = test_device()};
    const Tensor x = zeros({35}, options), middle = x.alias({33}, 1);
    fill(middle, 2);
    accumulate(middle, full({33}, 0.5, options));
    Values expected(35, 2.5);
    expected.front() = expected.back() = 0;
    CHECK(values_of(x) == expected);
  }
}

TEST_CASE("to keeps a tensor that is there already") {
  const Tensor x = uniform({3});
  CHECK(to(x, kCpu).is_same(x));
  CHECK(to(x, kMeta).device() == kMeta);
  CHECK(to(x, kMeta).dtype() == DType::f64);
}

TEST_CASE("errors") {
  const Tensor index = arange(3), x = uniform({3});
  const std::pair<const char*, std::function<void()>> floating[] = {
      {"neg", [&] { neg(index); }},
      {"abs", [&] { abs(index); }},
      {"exp", [&] { exp(index); }},
      {"log", [&] { log(index); }},
      {"sqrt", [&] { sqrt(index); }},
      {"tanh", [&] { tanh(index); }},
      {"sigmoid", [&] { sigmoid(index); }},
      {"relu", [&] { relu(index); }},
      {"elu", [&] { elu(index); }},
      {"clamp", [&] { clamp(index, 0, 1); }},
      {"pow", [&] { pow(index, 2); }},
      {"gelu", [&] { gelu(index); }},
      {"add", [&] { index + 1.0; }},
      {"mul", [&] { index * 2.0; }},
      {"masked_fill", [&] { masked_fill(index, index, 0); }},
  };
  for (const auto& [name, call] : floating) {
    check_error(call, std::string(name) + ": expected x of dtype f32, f64 or bf16, got i64");
  }
  check_error([&] { exp(Tensor()); }, "tensor: expected a defined tensor, got an undefined one");
  check_error([&] { clamp(x, 1, 0); }, "clamp: expected low <= high, got 1 and 0");
  check_error([&] { clamp(x, kNan, 0); }, "clamp: expected low <= high, got nan and 0");
  check_error([&] { to(to(x, kMeta), kCpu); }, "to: cannot copy from meta to cpu");
  check_error([&] { accumulate(index, index); },
              "accumulate: expected into of dtype f32, f64 or bf16, got i64");
  check_error([&] { accumulate(x, cast(x, DType::f32)); },
              "accumulate: expected value of f64 on cpu like into, got f32 on cpu");
  check_error([&] { accumulate(x, uniform({1})); }, "accumulate: expected value of shape [3], got [1]");
}

/// Each 499th float from the least normal one to 16, and its negative.
std::vector<float> all_magnitudes() {
  constexpr uint32_t kStep = 499;
  std::vector<float> values;
  const auto last = std::bit_cast<uint32_t>(16.0F);
  for (uint32_t bits = std::bit_cast<uint32_t>(0x1p-126F); bits <= last; bits += kStep) {
    values.push_back(std::bit_cast<float>(bits));
    values.push_back(-values.back());
  }
  return values;
}

TEST_CASE("f32 GELU is within 2^-22 |x| of the exact value, its derivative within 2^-22") {
  const std::vector<float> values = all_magnitudes();
  const Tensor x = from_vector(values, {static_cast<int64_t>(values.size())}).set_requires_grad();
  const Tensor y = gelu(x);
  y.backward(ones(y.shape()));
  double worst = 0, worst_derivative = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const double at = values[i], cdf = 0.5 * std::erfc(-at / std::numbers::sqrt2),
                 pdf = std::exp(-0.5 * at * at) / std::sqrt(2 * std::numbers::pi);
    worst = std::max(worst, std::abs(y.data<float>()[i] - at * cdf) / std::abs(at));
    worst_derivative = std::max(worst_derivative, std::abs(x.grad().data<float>()[i] - (cdf + at * pdf)));
  }
  CHECK_MESSAGE(worst < 0x1p-22, worst);
  CHECK_MESSAGE(worst_derivative < 0x1p-22, worst_derivative);
}

}  // namespace
}  // namespace elwise::testing
