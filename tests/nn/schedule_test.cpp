#include "nn/schedule.h"

#include <doctest/doctest.h>

#include <cmath>

namespace elwise::nn {
namespace {

TEST_CASE("every schedule rises linearly from 0 to 1 over the warm-up") {
  for (int64_t step = 0; step <= 10; ++step) {
    const double expected = static_cast<double>(step) / 10;
    CHECK(constant_schedule(step, 10) == doctest::Approx(expected));
    CHECK(linear_schedule(step, 10, 50) == doctest::Approx(expected));
    CHECK(cosine_schedule(step, 10, 50, 0.2) == doctest::Approx(expected));
  }
  CHECK(constant_schedule(10, 10) == 1);
  CHECK(linear_schedule(10, 10, 50) == 1);
  CHECK(cosine_schedule(10, 10, 50) == 1);
}

TEST_CASE("without warm-up every schedule starts at 1") {
  CHECK(constant_schedule(0, 0) == 1);
  CHECK(linear_schedule(0, 0, 10) == 1);
  CHECK(cosine_schedule(0, 0, 10) == 1);
}

TEST_CASE("the constant schedule stays 1") {
  CHECK(constant_schedule(11, 10) == 1);
  CHECK(constant_schedule(1'000'000, 10) == 1);
}

TEST_CASE("the linear schedule falls to 0 and stays there") {
  CHECK(linear_schedule(20, 10, 50) == doctest::Approx(0.75));
  CHECK(linear_schedule(30, 10, 50) == doctest::Approx(0.5));
  CHECK(linear_schedule(49, 10, 50) == doctest::Approx(0.025));
  CHECK(linear_schedule(50, 10, 50) == 0);
  CHECK(linear_schedule(60, 10, 50) == 0);
}

TEST_CASE("the cosine schedule falls to its floor and stays there") {
  CHECK(cosine_schedule(20, 10, 50) == doctest::Approx(0.5 + 0.25 * std::sqrt(2.0)));
  CHECK(cosine_schedule(30, 10, 50) == doctest::Approx(0.5));
  CHECK(cosine_schedule(50, 10, 50) == doctest::Approx(0).epsilon(1e-15));
  CHECK(cosine_schedule(30, 10, 50, 0.2) == doctest::Approx(0.6));
  CHECK(cosine_schedule(50, 10, 50, 0.2) == doctest::Approx(0.2));
  CHECK(cosine_schedule(60, 10, 50, 0.2) == doctest::Approx(0.2));
}

TEST_CASE("a run that is all warm-up ends at once") {
  CHECK(linear_schedule(9, 10, 10) == doctest::Approx(0.9));
  CHECK(linear_schedule(10, 10, 10) == 0);
  CHECK(cosine_schedule(10, 10, 10, 0.1) == doctest::Approx(0.1));
}

}  // namespace
}  // namespace elwise::nn
