#pragma once

#include "tools/experiments/forecasting_data.h"

namespace elwise::tools {

/// Mean absolute and root mean squared error of forecasts, over all windows and all steps of the horizon
/// alike.
struct ForecastErrors {
  double mae = 0;
  double rmse = 0;
};

/// Adds errors up.
class ErrorSum {
 public:
  void add(double forecast, double truth);
  /// Throws Error when nothing was added.
  ForecastErrors errors() const;

 private:
  double absolute_ = 0;
  double squared_ = 0;
  int64_t count_ = 0;
};

// Forecasts without a network, for a table of networks to be read against. Both give the errors on `rows`, in
// the units of the series.

/// The last value that was read stays.
ForecastErrors persistence_errors(const ForecastingData& data, const Rows& rows);

/// For each hour of the day at which a window's last value was measured, a linear model of its own from the
/// values read to the values forecast, fitted by least squares to the training windows. An hour that no
/// training window ends at takes the model of all training windows.
ForecastErrors hourly_linear_errors(const ForecastingData& data, const Rows& rows);

}  // namespace elwise::tools
