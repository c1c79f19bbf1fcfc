#pragma once

#include <optional>
#include <string>

#include "models/forecaster.h"
#include "tools/experiments/csv_file.h"

namespace elwise::tools {

/// How the rows of a series are divided between training, validation and test. The Time Series Library's
/// ways.
enum class SplitRule : uint8_t {
  etth,   // hourly rows: 12, 4 and 4 months of 30 days; what follows is not used
  ettm,   // the same for a row every 15 minutes
  ratio,  // the first 70 %, the last 20 %, and what lies between them
};

/// The rule that the Time Series Library has for a file: by its name, without the ending.
SplitRule split_rule_of(const std::filesystem::path& path);
/// From "etth", "ettm" or "ratio"; nothing for any other name.
std::optional<SplitRule> split_rule_named(const std::string& name);
/// The rule in words.
std::string description_of(SplitRule rule);

/// The marks of these names; of "none" alone, none. Throws Error that lists them for any other name.
std::vector<models::CalendarMark> parse_marks(const std::vector<std::string>& names);

/// Rows begin .. end - 1.
struct Rows {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t count() const { return end - begin; }
};

/// Validation and test begin `length` rows before the row at which their forecasts begin: a first window
/// reads what was known then.
struct Split {
  Rows training;
  Rows validation;
  Rows test;
};

/// Throws Error where the series has too few rows for the rule, or a part of it for one window of `length`
/// rows and `horizon` rows after them.
Split split_rows(SplitRule rule, int64_t rows, int64_t length, int64_t horizon);

/// A series cut into windows of `length` rows to read and `horizon` rows to forecast, standardised by the
/// mean and the (population) standard deviation of the training rows.
class ForecastingData {
 public:
  /// Throws Error as split_rows, and for training rows that are all the same.
  ForecastingData(TimeSeries series, SplitRule rule, int64_t length, int64_t horizon,
                  std::vector<models::CalendarMark> marks);

  const TimeSeries& series() const { return series_; }
  const Split& split() const { return split_; }
  int64_t length() const { return length_; }
  int64_t horizon() const { return horizon_; }
  double mean() const { return mean_; }
  double deviation() const { return deviation_; }

  /// The number of windows in a part of the split.
  int64_t windows(const Rows& rows) const { return rows.count() - length_ - horizon_ + 1; }

  /// Windows that begin at the rows `starts`, standardised, on `device`.
  struct Batch {
    models::ForecasterInput input;
    Tensor target;  // [batch, horizon]
  };
  Batch batch(const std::vector<int64_t>& starts, TensorOptions options = {}) const;

  /// The first rows of a part's windows, in order.
  std::vector<int64_t> starts(const Rows& rows) const;

 private:
  TimeSeries series_;
  int64_t length_;
  int64_t horizon_;
  std::vector<models::CalendarMark> marks_;
  Split split_;
  double mean_ = 0;
  double deviation_ = 1;
};

}  // namespace elwise::tools
