#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "tools/experiments/line_reader.h"

namespace elwise::tools {

/// A moment as a calendar and a clock show it.
struct CalendarTime {
  int year = 0;
  int month = 1;    // 1 .. 12
  int day = 1;      // 1 .. 31
  int weekday = 0;  // 0 (Monday) .. 6
  int hour = 0;     // 0 .. 23
  int minute = 0;   // 0 .. 59

  bool operator==(const CalendarTime&) const = default;
};

/// "2016-07-01 13:45:00"; seconds, or all of the time, may be left out, "/" may stand for "-", "T" for the
/// blank, and one digit for two. Throws Error for any other text and for a day that no calendar has.
CalendarTime parse_calendar_time(std::string_view text);

/// A time series in comma-separated values: a line of column names, one of which is "date" in any case, then
/// a row per time with a date and a finite number for every other column. Read row by row.
class CsvFile {
 public:
  /// Reads the names. Throws Error for a file that cannot be read, without "date", or with a name that is
  /// empty or stands twice.
  explicit CsvFile(const std::filesystem::path& path);

  /// All but "date", in the order of the file.
  const std::vector<std::string>& columns() const { return columns_; }
  /// Throws Error that lists the columns there are.
  size_t column(std::string_view name) const;

  struct Row {
    CalendarTime time;
    std::vector<double> values;  // one for each of columns()
  };
  /// False at the end of the file. Throws Error with file and line for a wrong number of fields, a date that
  /// is none, what is not a finite number, a line that the end of the file cuts off, and an empty line with
  /// others after it.
  bool next(Row& row);

 private:
  double number(std::string_view field, size_t position) const;

  std::filesystem::path path_;
  LineReader lines_;
  std::vector<std::string> columns_;
  size_t date_ = 0;  // its place among the fields
};

/// One column of a CsvFile and when each of its values was measured.
struct TimeSeries {
  std::vector<double> values;
  std::vector<CalendarTime> times;
};

/// Reads, and checks, a whole file. Throws Error as CsvFile does.
TimeSeries read_time_series(const std::filesystem::path& path, std::string_view column);

}  // namespace elwise::tools
