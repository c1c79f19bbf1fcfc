#include "tools/experiments/csv_file.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>

#include "core/error.h"

namespace elwise::tools {
namespace {

constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
constexpr std::string_view kDateColumn = "date";

/// Takes the characters of a date or a time one after another.
class Scanner {
 public:
  explicit Scanner(std::string_view text) : rest_(text) {}

  bool at_end() const { return rest_.empty(); }
  bool skip(std::string_view any_of) {
    if (rest_.empty() || any_of.find(rest_.front()) == std::string_view::npos) return false;
    rest_.remove_prefix(1);
    return true;
  }
  /// A number of 1 .. `digits` digits.
  bool number(size_t digits, int& value) {
    const std::string_view candidate = rest_.substr(0, digits);
    if (candidate.empty() || candidate.front() < '0' || candidate.front() > '9') return false;
    const auto parsed = std::from_chars(candidate.data(), candidate.data() + candidate.size(), value);
    rest_.remove_prefix(static_cast<size_t>(parsed.ptr - candidate.data()));
    return true;
  }

 private:
  std::string_view rest_;
};

bool scan_date(Scanner& scanner, CalendarTime& time) {
  if (!(scanner.number(4, time.year) && scanner.skip("-/") && scanner.number(2, time.month) &&
        scanner.skip("-/") && scanner.number(2, time.day))) {
    return false;
  }
  const std::chrono::year_month_day date(std::chrono::year(time.year),
                                         std::chrono::month(static_cast<unsigned>(time.month)),
                                         std::chrono::day(static_cast<unsigned>(time.day)));
  if (!date.ok()) return false;
  time.weekday = static_cast<int>(std::chrono::weekday(std::chrono::sys_days(date)).iso_encoding()) - 1;
  return true;
}

bool scan_time(Scanner& scanner, CalendarTime& time) {
  int second = 0;
  if (!(scanner.skip(" T") && scanner.number(2, time.hour) && scanner.skip(":") &&
        scanner.number(2, time.minute))) {
    return false;
  }
  if (scanner.skip(":") && !scanner.number(2, second)) return false;
  return time.hour < 24 && time.minute < 60 && second < 60;
}

std::vector<std::string_view> fields_of(std::string_view line) {
  std::vector<std::string_view> fields;
  for (size_t begin = 0;;) {
    const size_t comma = line.find(',', begin);
    fields.push_back(line.substr(begin, comma - begin));
    if (comma == std::string_view::npos) return fields;
    begin = comma + 1;
  }
}

bool is_date_column(std::string_view name) {
  return std::equal(name.begin(), name.end(), kDateColumn.begin(), kDateColumn.end(),
                    [](char a, char b) { return (a >= 'A' && a <= 'Z' ? a - 'A' + 'a' : a) == b; });
}

}  // namespace

CalendarTime parse_calendar_time(std::string_view text) {
  CalendarTime time;
  Scanner scanner(text);
  const bool parsed =
      scan_date(scanner, time) && (scanner.at_end() || scan_time(scanner, time)) && scanner.at_end();
  ELWISE_CHECK(parsed, "expected a date like 2016-07-01 13:00:00, got ", shown(text));
  return time;
}

CsvFile::CsvFile(const std::filesystem::path& path) : path_(path), lines_(path) {
  std::string_view line;
  ELWISE_CHECK(lines_.next(line), path.string(), ": expected a line of column names, got an empty file");
  if (line.starts_with(kByteOrderMark)) line.remove_prefix(kByteOrderMark.size());
  const std::vector<std::string_view> names = fields_of(line);
  const auto date = std::find_if(names.begin(), names.end(), is_date_column);
  if (date == names.end()) lines_.fail_here("expected a column ", kDateColumn, ", got ", shown(line));
  date_ = static_cast<size_t>(date - names.begin());
  for (size_t i = 0; i < names.size(); ++i) {
    if (i == date_) continue;
    if (names[i].empty()) lines_.fail_here("column ", i + 1, " has no name");
    const bool is_new =
        !is_date_column(names[i]) && std::find(columns_.begin(), columns_.end(), names[i]) == columns_.end();
    if (!is_new) lines_.fail_here("column ", shown(names[i]), " stands there twice");
    columns_.emplace_back(names[i]);
  }
}

size_t CsvFile::column(std::string_view name) const {
  const auto found = std::find(columns_.begin(), columns_.end(), name);
  if (found != columns_.end()) return static_cast<size_t>(found - columns_.begin());
  constexpr size_t kMostListed = 20;
  std::string there;
  for (size_t i = 0; i < std::min(kMostListed, columns_.size()); ++i) {
    there += (i == 0 ? "" : ", ") + columns_[i];
  }
  if (columns_.size() > kMostListed) there += ", .. (" + std::to_string(columns_.size()) + " in all)";
  fail(path_.string(), ": expected one of the columns ", there, ", got ", shown(name));
}

double CsvFile::number(std::string_view field, size_t position) const {
  double value = 0;
  const auto parsed = std::from_chars(field.data(), field.data() + field.size(), value);
  const bool whole = parsed.ec == std::errc() && parsed.ptr == field.data() + field.size();
  if (!whole || !std::isfinite(value)) {
    lines_.fail_here("expected a number in column ", columns_[position], ", got ", shown(field));
  }
  return value;
}

bool CsvFile::next(Row& row) {
  std::string_view line;
  if (!lines_.next(line)) return false;
  if (line.empty()) {  // some editors leave empty lines at the end
    while (lines_.next(line)) {
      if (!line.empty())
        lines_.fail_here("expected the end of the file after an empty line, got ", shown(line));
    }
    return false;
  }
  if (lines_.is_unfinished()) {
    lines_.fail_here("the line has no end: the file is cut off, or lacks its last line break");
  }
  const std::vector<std::string_view> fields = fields_of(line);
  if (fields.size() != columns_.size() + 1) {
    lines_.fail_here("expected ", columns_.size() + 1, " fields, got ", fields.size());
  }
  row.values.clear();
  for (size_t i = 0; i < fields.size(); ++i) {
    if (i != date_) row.values.push_back(number(fields[i], row.values.size()));
  }
  try {
    row.time = parse_calendar_time(fields[date_]);
  } catch (const Error& error) {
    lines_.fail_here(error.what());
  }
  return true;
}

TimeSeries read_time_series(const std::filesystem::path& path, std::string_view column) {
  CsvFile file(path);
  const size_t target = file.column(column);
  TimeSeries series;
  for (CsvFile::Row row; file.next(row);) {
    series.values.push_back(row.values[target]);
    series.times.push_back(row.time);
  }
  return series;
}

}  // namespace elwise::tools
