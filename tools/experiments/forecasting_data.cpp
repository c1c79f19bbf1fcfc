#include "tools/experiments/forecasting_data.h"

#include <cmath>

#include "ops/elementwise.h"

namespace elwise::tools {
namespace {

constexpr int64_t kHoursInMonth = 30 * 24;
constexpr int64_t kQuartersInMonth = 4 * kHoursInMonth;

/// The ends of the training, validation and test rows.
struct Borders {
  int64_t training, validation, test;
};

Borders borders_of(SplitRule rule, int64_t rows) {
  if (rule != SplitRule::ratio) {
    const int64_t month = rule == SplitRule::etth ? kHoursInMonth : kQuartersInMonth;
    ELWISE_CHECK(rows >= 20 * month, "split: ", description_of(rule), ": expected ", 20 * month,
                 " rows or more, got ", rows);
    return {.training = 12 * month, .validation = 16 * month, .test = 20 * month};
  }
  const int64_t training = rows * 7 / 10, test = rows / 5;
  return {.training = training, .validation = rows - test, .test = rows};
}

int64_t index_of(models::CalendarMark mark, const CalendarTime& time) {
  switch (mark) {
    case models::CalendarMark::month:
      return time.month - 1;
    case models::CalendarMark::day:
      return time.day - 1;
    case models::CalendarMark::weekday:
      return time.weekday;
    case models::CalendarMark::hour:
      return time.hour;
    case models::CalendarMark::minute:
      return time.minute;
  }
  fail("forecasting: an unknown calendar mark");
}

}  // namespace

SplitRule split_rule_of(const std::filesystem::path& path) {
  const std::string name = path.stem().string();
  if (name == "ETTh1" || name == "ETTh2") return SplitRule::etth;
  if (name == "ETTm1" || name == "ETTm2") return SplitRule::ettm;
  return SplitRule::ratio;
}

std::optional<SplitRule> split_rule_named(const std::string& name) {
  if (name == "etth") return SplitRule::etth;
  if (name == "ettm") return SplitRule::ettm;
  if (name == "ratio") return SplitRule::ratio;
  return std::nullopt;
}

std::string description_of(SplitRule rule) {
  switch (rule) {
    case SplitRule::etth:
      return "12/4/4 months of hours";
    case SplitRule::ettm:
      return "12/4/4 months of quarters of an hour";
    case SplitRule::ratio:
      break;
  }
  return "70/10/20 % of the rows";
}

std::vector<models::CalendarMark> parse_marks(const std::vector<std::string>& names) {
  std::vector<models::CalendarMark> marks;
  if (names == std::vector<std::string>{"none"}) return marks;
  for (const std::string& name : names) marks.push_back(models::parse_calendar_mark(name));
  return marks;
}

Split split_rows(SplitRule rule, int64_t rows, int64_t length, int64_t horizon) {
  const Borders borders = borders_of(rule, rows);
  const Split split{.training = {0, borders.training},
                    .validation = {borders.training - length, borders.validation},
                    .test = {borders.validation - length, borders.test}};
  const std::pair<const char*, Rows> parts[] = {
      {"training", split.training}, {"validation", split.validation}, {"test", split.test}};
  for (const auto& [name, part] : parts) {
    ELWISE_CHECK(part.begin >= 0 && part.count() >= length + horizon, "split: ", description_of(rule), ": ",
                 rows, " rows are too few: expected ", length + horizon, " ", name, " rows or more, got ",
                 part.begin < 0 ? part.end : part.count());
  }
  return split;
}

ForecastingData::ForecastingData(TimeSeries series, SplitRule rule, int64_t length, int64_t horizon,
                                 std::vector<models::CalendarMark> marks)
    : series_(std::move(series)),
      length_(length),
      horizon_(horizon),
      marks_(std::move(marks)),
      split_(split_rows(rule, static_cast<int64_t>(series_.values.size()), length, horizon)) {
  const auto training = static_cast<size_t>(split_.training.end);
  double sum = 0, squares = 0;
  for (size_t i = 0; i < training; ++i) sum += series_.values[i];
  mean_ = sum / static_cast<double>(training);
  for (size_t i = 0; i < training; ++i) squares += std::pow(series_.values[i] - mean_, 2);
  deviation_ = std::sqrt(squares / static_cast<double>(training));
  ELWISE_CHECK(deviation_ > 0, "forecasting: expected values that vary, all ", training,
               " training rows have ", mean_);
}

std::vector<int64_t> ForecastingData::starts(const Rows& rows) const {
  std::vector<int64_t> result;
  for (int64_t i = 0; i < windows(rows); ++i) result.push_back(rows.begin + i);
  return result;
}

ForecastingData::Batch ForecastingData::batch(const std::vector<int64_t>& starts,
                                              TensorOptions options) const {
  const auto rows = static_cast<int64_t>(starts.size());
  /// of(row) for `count` rows from `offset` on in each window.
  const auto gather = [&](int64_t offset, int64_t count, const auto& of) {
    std::vector<decltype(of(size_t{}))> values;
    values.reserve(static_cast<size_t>(rows * count));
    for (const int64_t start : starts) {
      for (int64_t i = 0; i < count; ++i) values.push_back(of(static_cast<size_t>(start + offset + i)));
    }
    return to(from_vector(values, {rows, count}), options.device);
  };
  const auto standardised = [&](size_t row) { return (series_.values[row] - mean_) / deviation_; };
  Batch result{.input = {.values = cast(gather(0, length_, standardised), options.dtype), .marks = {}},
               .target = cast(gather(length_, horizon_, standardised), options.dtype)};
  for (const models::CalendarMark mark : marks_) {
    result.input.marks.push_back(
        gather(0, length_, [&](size_t row) { return index_of(mark, series_.times[row]); }));
  }
  return result;
}

}  // namespace elwise::tools
