#include "tools/experiments/forecasting_data.h"

#include <doctest/doctest.h>

#include <cmath>

#include "tests/support/op_test.h"
#include "tools/experiments/forecast_controls.h"
#include "tools/experiments/least_squares.h"

namespace elwise::tools {
namespace {

using models::CalendarMark;
using testing::check_close;
using testing::check_error;
using testing::Values;
using testing::values_of;

/// `rows` values, one per hour from midnight of 2020-01-01 on, of value(row).
template <class Value>
TimeSeries hourly(int64_t rows, const Value& value) {
  TimeSeries series;
  for (int64_t row = 0; row < rows; ++row) {
    series.values.push_back(value(row));
    series.times.push_back({.year = 2020,
                            .month = 1,
                            .day = 1 + static_cast<int>(row / 24 % 31),
                            .weekday = static_cast<int>((row / 24 + 2) % 7),
                            .hour = static_cast<int>(row % 24)});
  }
  return series;
}

std::string text_of(const Split& split) {
  std::string text;
  for (const Rows& rows : {split.training, split.validation, split.test}) {
    text += std::to_string(rows.begin) + ".." + std::to_string(rows.end) + " ";
  }
  return text;
}

TEST_CASE("the Time Series Library's splits, by the number of rows") {
  CHECK(text_of(split_rows(SplitRule::etth, 17420, 6, 12)) == "0..8640 8634..11520 11514..14400 ");
  CHECK(text_of(split_rows(SplitRule::etth, 14400, 96, 24)) == "0..8640 8544..11520 11424..14400 ");
  CHECK(text_of(split_rows(SplitRule::ettm, 69680, 6, 6)) == "0..34560 34554..46080 46074..57600 ");
  // int(0.7 n) and int(0.2 n) at the ends; what lies between is validation
  CHECK(text_of(split_rows(SplitRule::ratio, 17544, 6, 6)) == "0..12280 12274..14036 14030..17544 ");
  CHECK(text_of(split_rows(SplitRule::ratio, 101, 4, 2)) == "0..70 66..81 77..101 ");
  CHECK(text_of(split_rows(SplitRule::ratio, 10, 2, 1)) == "0..7 5..8 6..10 ");
  check_error([] { split_rows(SplitRule::etth, 14399, 6, 6); },
              "split: 12/4/4 months of hours: expected 14400 rows or more, got 14399");
  check_error([] { split_rows(SplitRule::ettm, 17420, 6, 6); },
              "split: 12/4/4 months of quarters of an hour: expected 57600 rows or more, got 17420");
  check_error([] { split_rows(SplitRule::ratio, 50, 6, 6); },
              "split: 70/10/20 % of the rows: 50 rows are too few: expected 12 validation rows or more, got "
              "11");
  check_error([] { split_rows(SplitRule::ratio, 10, 8, 1); },
              "split: 70/10/20 % of the rows: 10 rows are too few: expected 9 training rows or more, got 7");
}

TEST_CASE("the split follows from the file's name") {
  CHECK(split_rule_of("somewhere/ETTh2.csv") == SplitRule::etth);
  CHECK(split_rule_of("ETTh1.csv") == SplitRule::etth);
  CHECK(split_rule_of("ETTm2.csv") == SplitRule::ettm);
  CHECK(split_rule_of("traffic.csv") == SplitRule::ratio);
  CHECK(split_rule_named("ettm") == SplitRule::ettm);
  CHECK_FALSE(split_rule_named("auto"));
}

TEST_CASE("windows: what is read, what follows, when, on the training rows' scale") {
  const ForecastingData data(hourly(100, [](int64_t row) { return 3.0 + 2 * static_cast<double>(row); }),
                             SplitRule::ratio, 3, 2, {CalendarMark::hour, CalendarMark::day});
  CHECK(data.mean() == doctest::Approx(72));  // of rows 0 .. 69
  CHECK(data.deviation() == doctest::Approx(2 * std::sqrt((70 * 70 - 1) / 12.0)));
  CHECK(data.windows(data.split().training) == 66);
  CHECK(data.starts(data.split().test) == [] {
    std::vector<int64_t> expected;  // the first forecast of the test rows is that of row 80
    for (int64_t start = 77; start + 3 + 2 <= 100; ++start) expected.push_back(start);
    return expected;
  }());
  const ForecastingData::Batch batch = data.batch({0, 46}, {.dtype = DType::f64});
  const auto scaled = [&](double row) { return (3 + 2 * row - data.mean()) / data.deviation(); };
  check_close(values_of(batch.input.values),
              {scaled(0), scaled(1), scaled(2), scaled(46), scaled(47), scaled(48)}, {1e-14, 1e-14}, "read");
  check_close(values_of(batch.target), {scaled(3), scaled(4), scaled(49), scaled(50)}, {1e-14, 1e-14},
              "target");
  REQUIRE(batch.input.marks.size() == 2);
  CHECK(batch.input.marks[0].to_vector<int64_t>() == std::vector<int64_t>{0, 1, 2, 22, 23, 0});
  CHECK(batch.input.marks[1].to_vector<int64_t>() == std::vector<int64_t>{0, 0, 0, 1, 1, 2});
  CHECK(data.batch({0}).target.dtype() == DType::f32);
  check_error([] { ForecastingData(hourly(100, [](int64_t) { return 1.5; }), SplitRule::ratio, 3, 2, {}); },
              "forecasting: expected values that vary, all 70 training rows have 1.5");
}

TEST_CASE("least squares: lines known by hand, and inputs that say nothing new") {
  // y = 1 + 2a - b exactly; beside it 3ab, whose best fit is 1.5a + 1.5b - 0.75.
  const std::vector<double> x{0, 0, 1, 0, 0, 1, 1, 1}, y{1, 0, 3, 0, 0, 0, 2, 3};
  const LinearModel model = least_squares(x, y, 2, 2);
  check_close(model.coefficients, {2, -1, 1, 1.5, 1.5, -0.75}, {1e-12, 1e-12}, "coefficients");
  const double at[] = {10, 3};
  check_close(model(at), {18, 18.75}, {1e-12, 1e-12}, "applied");
  // Through (0, 0), (1, 1), (2, 1): y = 1/6 + x/2, whatever multiples and constants stand beside x.
  const LinearModel line = least_squares({7, 0, 1, 7, 1, 3, 7, 2, 5}, {0, 1, 1}, 3, 1);
  check_close(line.coefficients, {0, 0.5, 0, 1.0 / 6}, {1e-12, 1e-12}, "dependent");
  // Large values that vary little lose nothing to rounding.
  const LinearModel far = least_squares({1e6, 1e6 + 1, 1e6 + 2}, {0, 1, 1}, 1, 1);
  CHECK(far.coefficients[0] == doctest::Approx(0.5).epsilon(1e-9));
  check_error(
      [] {
        least_squares({1, 2, 3}, {1, 2}, 1, 1);
      },
      "least_squares: expected as many rows of 1 inputs as of 1 outputs, got 3 and 2 values");
  check_error([] { least_squares({}, {}, 1, 1); },
              "least_squares: expected inputs, outputs and rows, got 1, 1 and 0 values");
}

TEST_CASE("controls: errors known by hand") {
  // Rises by 2 an hour: the last value is 2 and 4 off.
  const ForecastingData line(hourly(400, [](int64_t row) { return 2.0 * static_cast<double>(row); }),
                             SplitRule::ratio, 3, 2, {});
  const ForecastErrors kept = persistence_errors(line, line.split().test);
  CHECK(kept.mae == doctest::Approx(3));
  CHECK(kept.rmse == doctest::Approx(std::sqrt(10)));
  CHECK(hourly_linear_errors(line, line.split().test).rmse < 1e-8);

  // The hour itself: the last value is 1 off, at midnight 23. One linear model for each hour knows what
  // follows.
  const ForecastingData hours(hourly(2400, [](int64_t row) { return static_cast<double>(row % 24); }),
                              SplitRule::ratio, 1, 1, {});
  const ForecastErrors late = persistence_errors(hours, hours.split().test);  // of 20 days
  CHECK(late.mae == doctest::Approx(46.0 / 24));
  CHECK(late.rmse == doctest::Approx(std::sqrt(23)));
  CHECK(hourly_linear_errors(hours, hours.split().test).rmse < 1e-9);
  ErrorSum sum;
  check_error([&] { sum.errors(); }, "forecast errors: expected at least one forecast");
}

TEST_CASE("an hour that no training window ends at takes the model of all windows") {
  TimeSeries series = hourly(300, [](int64_t row) { return static_cast<double>(row); });
  for (size_t row = 0; row < series.times.size(); ++row) series.times[row].hour = row < 240 ? 0 : 7;
  const ForecastingData data(std::move(series), SplitRule::ratio, 2, 1, {});
  CHECK(hourly_linear_errors(data, data.split().test).mae < 1e-9);
}

}  // namespace
}  // namespace elwise::tools
