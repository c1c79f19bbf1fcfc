#include "tools/experiments/csv_file.h"

#include <doctest/doctest.h>

#include "tests/support/op_test.h"
#include "tests/support/temporary_folder.h"

namespace elwise::tools {
namespace {

using testing::check_error;

TEST_CASE("dates: calendar marks, and what else may stand for them") {
  CHECK(parse_calendar_time("2016-07-01 13:45:00") == CalendarTime{2016, 7, 1, 4, 13, 45});  // a Friday
  CHECK(parse_calendar_time("2016-07-01T13:45") == CalendarTime{2016, 7, 1, 4, 13, 45});
  CHECK(parse_calendar_time("1990/1/2 0:00") == CalendarTime{1990, 1, 2, 1, 0, 0});
  CHECK(parse_calendar_time("2024-02-29") == CalendarTime{2024, 2, 29, 3, 0, 0});
  for (const std::string text :
       {"2023-02-29", "2016-13-01", "2016-00-01", "2016-07-32", "2016-07-01 24:00", "2016-07-01 12:60",
        "2016-07-01 12:00:60", "2016-07-01 12:00:00.5", "2016-07", "07-01-2016 x", "", "2016-07-01 12",
        "2016-07-01 12:00 ", " 2016-07-01", "2016-07--1", "+2016-07-01"}) {
    check_error([&] { parse_calendar_time(text); },
                "expected a date like 2016-07-01 13:00:00, got '" + text + "'");
  }
}

const std::string kText =
    "date,HUFL,OT\n"
    "2016-07-01 00:00:00,5.5,38.25\n"
    "2016-07-01 01:00:00,-1e-3,37\n"
    "2016-07-02 00:00:00,0,-2.5\n";

TEST_CASE("a column with its times, whatever ends the lines and wherever the date stands") {
  const TemporaryFolder folder;
  std::string crlf = kText + "\n";
  for (size_t at = 0; (at = crlf.find('\n', at)) != std::string::npos; at += 2) crlf.replace(at, 1, "\r\n");
  const std::string last =
      "\xEF\xBB\xBFHUFL,OT,Date\n5.5,38.25,2016-07-01 00:00\n-1e-3,37,2016-07-01 01:00\n0,-2.5,2016-07-02\n";
  for (const std::string& text : {kText, crlf, last}) {
    const auto path = folder.write("data.csv", text);
    const TimeSeries series = read_time_series(path, "OT");
    CHECK(series.values == std::vector<double>{38.25, 37, -2.5});
    CHECK(series.times[1] == CalendarTime{2016, 7, 1, 4, 1, 0});
    CHECK(series.times[2] == CalendarTime{2016, 7, 2, 5, 0, 0});
    CHECK(read_time_series(path, "HUFL").values == std::vector<double>{5.5, -1e-3, 0});
  }
}

TEST_CASE("lines and files longer than the reader's buffer") {
  const TemporaryFolder folder;
  constexpr int kColumns = 20'000, kRows = 4;
  std::string text = "date";
  for (int i = 0; i < kColumns; ++i) text += ",c" + std::to_string(i);
  for (int row = 0; row < kRows; ++row) {
    text += "\r\n2020-01-01 0" + std::to_string(row) + ":00";
    for (int i = 0; i < kColumns; ++i) text += "," + std::to_string(i + row);
  }
  text += "\n";
  const auto path = folder.write("wide.csv", text);
  CHECK(read_time_series(path, "c0").values == std::vector<double>{0, 1, 2, 3});
  CHECK(read_time_series(path, "c19999").values == std::vector<double>{19999, 20000, 20001, 20002});
}

TEST_CASE("a damaged file: the path, the line and what was expected") {
  const TemporaryFolder folder;
  const auto path = folder.path() / "data.csv";
  const std::string file = path.string();
  const std::pair<std::string, std::string> cases[] = {
      {"", file + ": expected a line of column names, got an empty file"},
      {"time,OT\n", file + ":1: expected a column date, got 'time,OT'"},
      {"date,OT,\n", file + ":1: column 3 has no name"},
      {"date,OT,OT\n", file + ":1: column 'OT' stands there twice"},
      {"date,OT,DATE\n", file + ":1: column 'DATE' stands there twice"},
      {kText + "2016-07-02 00:00:00,0,1,1\n", file + ":5: expected 3 fields, got 4"},
      {"date,A,OT\n2016-07-01,1\n", file + ":2: expected 3 fields, got 2"},
      {"date,A,OT\r\n2016-07-01,1,2\r\n2016-07-01,1,2O\r\n",
       file + ":3: expected a number in column OT, got '2O'"},
      {"date,OT\n2016-07-01,\n", file + ":2: expected a number in column OT, got ''"},
      {"date,OT\n2016-07-01, 1\n", file + ":2: expected a number in column OT, got ' 1'"},
      {"date,A,OT\n2016-07-01,nan,1\n", file + ":2: expected a number in column A, got 'nan'"},
      {"date,OT\n2016-07-01,1e999\n", file + ":2: expected a number in column OT, got '1e999'"},
      {"date,OT\n2016-07-01,1\x01\xFF\n", file + ":2: expected a number in column OT, got '1?"
                                                 "?'"},
      {"date,OT\n2016-02-30,1\n", file + ":2: expected a date like 2016-07-01 13:00:00, got '2016-02-30'"},
      {"date,OT\n2016-07-01,1\n\n2016-07-01,2\n",
       file + ":4: expected the end of the file after an empty line, got '2016-07-01,2'"},
      {kText.substr(0, kText.size() - 3),
       file + ":4: the line has no end: the file is cut off, or lacks its last line break"},
  };
  for (const auto& [text, message] : cases) {
    folder.write("data.csv", text);
    check_error([&] { read_time_series(path, "OT"); }, message);
  }
  folder.write("data.csv", "date,OT\n2016-07-01," + std::string(100, 'x') + "\n");
  check_error([&] { read_time_series(path, "OT"); },
              file + ":2: expected a number in column OT, got '" + std::string(40, 'x') + "..'");
  folder.write("data.csv", kText);
  check_error([&] { read_time_series(path, "T"); }, file + ": expected one of the columns HUFL, OT, got 'T'");
  CHECK_THROWS_WITH_AS(read_time_series(folder / "none.csv", "OT"), doctest::Contains("cannot open"), Error);
}

}  // namespace
}  // namespace elwise::tools
