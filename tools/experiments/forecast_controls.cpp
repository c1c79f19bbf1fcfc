#include "tools/experiments/forecast_controls.h"

#include <array>
#include <cmath>

#include "tools/experiments/least_squares.h"

namespace elwise::tools {
namespace {

constexpr size_t kHours = 24;

size_t last_hour(const ForecastingData& data, int64_t start) {
  const auto last = static_cast<size_t>(start + data.length() - 1);
  return static_cast<size_t>(data.series().times[last].hour);
}

/// Windows in the form that least_squares takes.
struct Samples {
  std::vector<double> x;
  std::vector<double> y;

  void add(const ForecastingData& data, int64_t start) {
    const auto begin = data.series().values.begin() + start;
    x.insert(x.end(), begin, begin + data.length());
    y.insert(y.end(), begin + data.length(), begin + data.length() + data.horizon());
  }
};

std::array<LinearModel, kHours> fit_hours(const ForecastingData& data) {
  std::array<Samples, kHours> of_hour;
  Samples all;
  for (const int64_t start : data.starts(data.split().training)) {
    of_hour[last_hour(data, start)].add(data, start);
    all.add(data, start);
  }
  std::array<LinearModel, kHours> models;
  LinearModel of_all;
  for (size_t hour = 0; hour < kHours; ++hour) {
    const Samples& samples = of_hour[hour];
    if (samples.y.empty()) {
      if (of_all.coefficients.empty()) of_all = least_squares(all.x, all.y, data.length(), data.horizon());
      models[hour] = of_all;
    } else {
      models[hour] = least_squares(samples.x, samples.y, data.length(), data.horizon());
    }
  }
  return models;
}

/// Of forecast(start), one value for each step of the horizon.
template <class Forecast>
ForecastErrors errors_of(const ForecastingData& data, const Rows& rows, const Forecast& forecast) {
  ErrorSum sum;
  for (const int64_t start : data.starts(rows)) {
    const std::vector<double> values = forecast(start);
    const double* truth = data.series().values.data() + start + data.length();
    for (size_t i = 0; i < values.size(); ++i) sum.add(values[i], truth[i]);
  }
  return sum.errors();
}

}  // namespace

void ErrorSum::add(double forecast, double truth) {
  absolute_ += std::abs(forecast - truth);
  squared_ += (forecast - truth) * (forecast - truth);
  ++count_;
}

ForecastErrors ErrorSum::errors() const {
  ELWISE_CHECK(count_ > 0, "forecast errors: expected at least one forecast");
  const auto count = static_cast<double>(count_);
  return {.mae = absolute_ / count, .rmse = std::sqrt(squared_ / count)};
}

ForecastErrors persistence_errors(const ForecastingData& data, const Rows& rows) {
  return errors_of(data, rows, [&](int64_t start) {
    const double last = data.series().values[static_cast<size_t>(start + data.length() - 1)];
    return std::vector<double>(static_cast<size_t>(data.horizon()), last);
  });
}

ForecastErrors hourly_linear_errors(const ForecastingData& data, const Rows& rows) {
  const std::array<LinearModel, kHours> models = fit_hours(data);
  return errors_of(data, rows, [&](int64_t start) {
    return models[last_hour(data, start)](data.series().values.data() + start);
  });
}

}  // namespace elwise::tools
