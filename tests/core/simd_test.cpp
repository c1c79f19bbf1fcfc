#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "core/dtype.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/core/simd_test.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "core/simd-inl.h"

#ifndef ELWISE_TESTS_CORE_SIMD_TEST_ONCE
#define ELWISE_TESTS_CORE_SIMD_TEST_ONCE
namespace elwise {

struct Domain {
  double low;
  double high;
};

// Values of T in the domain: evenly spaced ones, ones whose size runs through every binary exponent, and the
// special ones.
template <class T>
std::vector<T> values_in(Domain domain) {
  using Limits = std::numeric_limits<T>;
  std::vector<double> candidates = {0.0,  -0.0,  1.0,  -1.0,  0.625,  4.0,   200,    -200,
                                    1e30, -1e30, 88.5, -87.5, -103.5, 709.5, -708.5, -745.0};
  for (const double size : {double(Limits::denorm_min()), double(Limits::min()), double(Limits::max()),
                            double(Limits::infinity())}) {
    candidates.push_back(size);
    candidates.push_back(-size);
  }
  const double low = std::max(domain.low, -120.0), high = std::min(domain.high, 120.0);
  for (int i = 0; i <= 20000; ++i) candidates.push_back(low + (high - low) * i / 20000);
  for (int exponent = Limits::min_exponent - Limits::digits; exponent < Limits::max_exponent; ++exponent) {
    for (const double fraction : {1.0, 1.1, 1.4142, 1.4143, 1.7, 1.999999}) {
      candidates.push_back(std::ldexp(fraction, exponent));
      candidates.push_back(-std::ldexp(fraction, exponent));
    }
  }
  std::vector<T> values;
  for (const double value : candidates) {
    if (value >= domain.low && value <= domain.high) values.push_back(static_cast<T>(value));
  }
  values.push_back(Limits::quiet_NaN());
  return values;
}

// |got - expected| in units of the last place of `expected`; 0 where both are NaN or equal, infinity where
// only one of them is.
template <class T>
double error_in_ulp(T got, long double expected) {
  const T rounded = static_cast<T>(expected);
  if (std::isnan(got) && std::isnan(rounded)) return 0;
  if (got == rounded) return 0;
  if (!std::isfinite(got) || !std::isfinite(rounded)) return std::numeric_limits<double>::infinity();
  const int exponent = rounded == 0 ? std::numeric_limits<T>::min_exponent
                                    : std::max(std::ilogb(rounded), std::numeric_limits<T>::min_exponent - 1);
  return static_cast<double>(std::abs(static_cast<long double>(got) - expected) /
                             std::ldexp(1.0L, exponent + 1 - std::numeric_limits<T>::digits));
}

template <class T>
std::string worst_case(const char* function, T x, T got, long double expected, double ulp) {
  return std::string(function) + "(" + std::to_string(x) + ") = " + std::to_string(got) + ", expected " +
         std::to_string(expected) + ", ulp " + std::to_string(ulp);
}

}  // namespace elwise
#endif

HWY_BEFORE_NAMESPACE();
namespace elwise::HWY_NAMESPACE {

template <class T, class Function, class Reference>
void check_function(const char* name, Domain domain, double tolerance_ulp, Function function,
                    Reference reference) {
  const hn::ScalableTag<T> d;
  const int64_t lanes = hn::Lanes(d);
  const std::vector<T> x = values_in<T>(domain);
  const int64_t count = static_cast<int64_t>(x.size());
  std::vector<T> y(x.size());
  for (int64_t i = 0; i < count; i += lanes) {
    const int64_t n = std::min(lanes, count - i);
    StorePart(d, function(d, LoadPart(d, &x[i], n)), &y[i], n);
  }
  std::string worst;
  double worst_ulp = 0;
  for (int64_t i = 0; i < count; ++i) {
    const long double expected = reference(static_cast<long double>(x[i]));
    const double ulp = error_in_ulp(y[i], expected);
    if (ulp > worst_ulp) {
      worst_ulp = ulp;
      worst = worst_case(name, x[i], y[i], expected, ulp);
    }
  }
  INFO(worst);
  CHECK(worst_ulp <= tolerance_ulp);
}

template <class T>
void check_math() {
  const double infinity = std::numeric_limits<double>::infinity();
  const double least_normal_log = std::log(static_cast<double>(std::numeric_limits<T>::min()));
  const Domain all{-infinity, infinity};
  check_function<T>(
      "exp", all, 1.5, [](auto d, auto x) HWY_ATTR { return Exp(d, x); },
      [](long double x) { return std::exp(x); });
  check_function<T>(
      "exp_non_positive", {least_normal_log + 1e-5, 0}, 1.5,
      [](auto d, auto x) HWY_ATTR { return ExpNonPositive(d, x); },
      [](long double x) { return std::exp(x); });
  check_function<T>(
      "exp2_non_positive", {std::numeric_limits<T>::min_exponent - 1, 0}, 1.5,
      [](auto d, auto x) HWY_ATTR { return Exp2NonPositive(d, x); },
      [](long double x) { return std::exp2(x); });
  for (const double most : {1.0, 4.0, 16.0}) {
    check_function<T>(
        "exp_of_difference", {-most, 0}, 1.5 + most,
        [](auto d, auto x) HWY_ATTR { return ExpOfDifference(d, x, hn::Zero(d)); },
        [](long double x) { return std::exp(x); });
    check_function<T>(
        "exp_of_squares", {0, std::sqrt(most)}, 1.5 + 2 * most,
        [](auto d, auto x) HWY_ATTR { return ExpOfSquares(d, hn::Zero(d), x); },
        [](long double x) { return std::exp(-x * x); });
  }
  check_function<T>(
      "exp_minus_one_non_positive", {-infinity, 0}, 2,
      [](auto d, auto x) HWY_ATTR { return ExpMinusOneNonPositive(d, x); },
      [](long double x) { return std::expm1(x); });
  check_function<T>(
      "log", all, 1.5, [](auto d, auto x) HWY_ATTR { return Log(d, x); },
      [](long double x) { return std::log(x); });
  check_function<T>(
      "tanh", all, 2, [](auto d, auto x) HWY_ATTR { return Tanh(d, x); },
      [](long double x) { return std::tanh(x); });
  check_function<T>(
      "erf", all, 3, [](auto d, auto x) HWY_ATTR { return Erf(d, x); },
      [](long double x) { return std::erf(x); });
  check_function<T>(
      "sigmoid", {least_normal_log + 1, infinity}, 3, [](auto d, auto x) HWY_ATTR { return Sigmoid(d, x); },
      [](long double x) { return 1 / (1 + std::exp(-x)); });
}

template <class T>
void check_edges() {
  const hn::ScalableTag<T> d;
  const T infinity = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  const auto at = [&](auto function, T x) HWY_ATTR { return hn::GetLane(function(hn::Set(d, x))); };
  const auto exp = [&](auto x) HWY_ATTR { return Exp(d, x); };
  const auto exp_non_positive = [&](auto x) HWY_ATTR { return ExpNonPositive(d, x); };
  const auto exp2_non_positive = [&](auto x) HWY_ATTR { return Exp2NonPositive(d, x); };
  const auto log = [&](auto x) HWY_ATTR { return Log(d, x); };
  const auto tanh = [&](auto x) HWY_ATTR { return Tanh(d, x); };
  const auto sigmoid = [&](auto x) HWY_ATTR { return Sigmoid(d, x); };
  const auto erf = [&](auto x) HWY_ATTR { return Erf(d, x); };
  CHECK(at(exp, T(0)) == 1);
  CHECK(at(exp, T(-0.0)) == 1);
  CHECK(at(exp, T(1000)) == infinity);
  CHECK(at(exp, infinity) == infinity);
  CHECK(at(exp, T(-1000)) == 0);
  CHECK(at(exp, -infinity) == 0);
  CHECK(std::isnan(at(exp, nan)));
  CHECK(at(exp_non_positive, T(0)) == 1);
  CHECK(at(exp_non_positive, T(-1000)) == 0);
  CHECK(at(exp_non_positive, std::numeric_limits<T>::lowest()) == 0);
  CHECK(at(exp_non_positive, -infinity) == 0);
  CHECK(std::isnan(at(exp_non_positive, nan)));
  CHECK(at(exp2_non_positive, T(0)) == 1);
  CHECK(at(exp2_non_positive, T(-3)) == T(0.125));
  CHECK(at(exp2_non_positive, T(-2000)) == 0);
  CHECK(at(exp2_non_positive, std::numeric_limits<T>::lowest()) == 0);
  CHECK(at(exp2_non_positive, -infinity) == 0);
  CHECK(std::isnan(at(exp2_non_positive, nan)));
  const T below_normal = std::log(std::numeric_limits<T>::min()) - T(0.5);
  CHECK(at(exp_non_positive, below_normal) < std::numeric_limits<T>::min());
  CHECK(at(exp_non_positive, below_normal) >= 0);
  CHECK(at(log, T(1)) == 0);
  CHECK(at(log, T(0)) == -infinity);
  CHECK(at(log, T(-0.0)) == -infinity);
  CHECK(at(log, infinity) == infinity);
  CHECK(std::isnan(at(log, T(-1))));
  CHECK(std::isnan(at(log, -infinity)));
  CHECK(at(tanh, T(100)) == 1);
  CHECK(at(tanh, -infinity) == -1);
  CHECK(std::signbit(at(tanh, T(-0.0))));
  CHECK(at(erf, T(100)) == 1);
  CHECK(at(erf, -infinity) == -1);
  CHECK(std::signbit(at(erf, T(-0.0))));
  CHECK(at(sigmoid, -infinity) == 0);
  CHECK(at(sigmoid, infinity) == 1);
}

template <class T>
void check_parts() {
  const hn::ScalableTag<T> d;
  const int64_t lanes = hn::Lanes(d);
  for (int64_t n = 0; n <= lanes; ++n) {
    // Exactly n elements: a sanitizer sees any access beyond them.
    std::vector<T> from(n), to(n), all(lanes, T(-1)), beyond(lanes + 1, T(-2));
    for (int64_t i = 0; i < n; ++i) from[i] = T(i + 1);
    const auto v = LoadPart(d, from.data(), n);
    StorePart(d, v, to.data(), n);
    CHECK(to == from);
    hn::StoreU(v, d, all.data());
    for (int64_t i = 0; i < lanes; ++i) CHECK(all[i] == (i < n ? T(i + 1) : T(0)));
    StorePart(d, v, beyond.data(), n);
    for (int64_t i = n; i <= lanes; ++i) CHECK(beyond[i] == T(-2));
  }
}

template <class T>
void check_reductions() {
  const hn::ScalableTag<T> d;
  const int64_t lanes = hn::Lanes(d);
  for (int64_t peak = 0; peak < lanes; ++peak) {
    std::vector<T> x(lanes);
    T sum = 0;
    for (int64_t i = 0; i < lanes; ++i) sum += x[i] = i == peak ? T(-0.5) : T(-1 - i);
    CHECK(ReduceSum(d, hn::LoadU(d, x.data())) == sum);
    CHECK(ReduceMax(d, hn::LoadU(d, x.data())) == T(-0.5));
  }
}

// Every bf16 value survives the round trip, and floats beside it round as BFloat16(float) does.
void check_bf16() {
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d);
  const std::vector<uint32_t> offsets = {0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF};
  const hn::Rebind<uint16_t, decltype(d)> d16;
  std::vector<uint16_t> halves(lanes), stored(lanes);
  std::vector<float> words(lanes), loaded(lanes);
  int64_t wrong_loads = 0, wrong_stores = 0;
  for (uint32_t first = 0; first < 0x10000; first += static_cast<uint32_t>(lanes)) {
    for (const uint32_t offset : offsets) {
      for (size_t i = 0; i < lanes; ++i) {
        const uint32_t bits = static_cast<uint32_t>(first + i);
        halves[i] = static_cast<uint16_t>(bits);
        words[i] = std::bit_cast<float>((bits << 16) + offset);
      }
      hn::StoreU(Bf16BitsToFloat(d, hn::LoadU(d16, halves.data())), d, loaded.data());
      hn::StoreU(FloatToBf16Bits(d, hn::LoadU(d, words.data())), d16, stored.data());
      for (size_t i = 0; i < lanes; ++i) {
        wrong_loads += std::bit_cast<uint32_t>(loaded[i]) != uint32_t{halves[i]} << 16;
        wrong_stores += stored[i] != BFloat16(words[i]).bits;
      }
    }
  }
  CHECK(wrong_loads == 0);
  CHECK(wrong_stores == 0);
}

void check_all() {
  INFO(std::string(hwy::TargetName(HWY_TARGET)));
  check_math<float>();
  check_math<double>();
  check_edges<float>();
  check_edges<double>();
  check_parts<float>();
  check_parts<double>();
  check_parts<int64_t>();
  check_parts<int32_t>();
  check_parts<uint16_t>();
  check_reductions<float>();
  check_reductions<double>();
  check_bf16();
}

}  // namespace elwise::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace elwise {

HWY_EXPORT(check_all);

TEST_CASE("simd: every function on every target of this machine") {
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(target);
    HWY_DYNAMIC_DISPATCH(check_all)();
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

}  // namespace elwise
#endif
