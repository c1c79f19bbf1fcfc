#include <doctest/doctest.h>

#include <string>

#include "tests/support/run_program.h"
#include "tests/support/temporary_folder.h"

// tools/get_data as a user runs it.

namespace elwise::testing {
namespace {

Run get_data(const std::string& arguments) {
  return run_command("python3 " ELWISE_SOURCE_DIR "/tools/get_data " + arguments);
}

/// ETTh2.csv as far as its size goes.
std::string hourly_csv(int rows, const std::string& row = "2016-07-01,1,2,3,4,5,6,7") {
  std::string text = "date,HUFL,HULL,MUFL,MULL,LUFL,LULL,OT\n";
  for (int i = 0; i < rows; ++i) text += row + "\n";
  return text;
}

/// The training part of UWaveGestureLibrary as far as its size goes.
std::string gestures(int cases, int dimensions, int length) {
  std::string text = "# comment\n@problemName UWave\n@data\n";
  for (int i = 0; i < cases; ++i) {
    for (int d = 0; d < dimensions; ++d) {
      for (int t = 0; t < length; ++t) text += t == 0 ? "0" : ",1";
      text += ":";
    }
    text += std::to_string(i % 8) + ".0\r\n";
  }
  return text;
}

void check_run(const std::string& arguments, int status, const std::string& message) {
  const Run result = get_data(arguments);
  CAPTURE(arguments);
  CHECK_MESSAGE(result.status == status, result.output);
  CHECK_MESSAGE(result.output.find(message) != std::string::npos, result.output);
}

}  // namespace

TEST_CASE("get_data lists every set of the paper with its files and a page") {
  const Run result = get_data("");
  CHECK(result.status == 0);
  for (const char* part : {"JapaneseVowels_TRAIN.ts", "SelfRegulationSCP1_TEST.ts", "SelfRegulationSCP2",
                           "UWaveGestureLibrary", "ETTh2.csv", "ETTm2.csv", "traffic.csv", "17544 rows",
                           "https://www.timeseriesclassification.com/", "https://github.com/"}) {
    CHECK_MESSAGE(result.output.find(part) != std::string::npos, part);
  }
}

TEST_CASE("get_data compares files with what is published") {
  const TemporaryFolder folder;
  const auto at = [&](const char* name, const std::string& text) {
    return folder.write(name, text).string();
  };
  check_run(at("ETTh2.csv", hourly_csv(17420)), 0, "as published: 17420 rows, 7 columns");
  check_run(at("ETTh2.csv", hourly_csv(17419)), 1, "17419 rows, expected 17420");
  check_run(at("ETTh2.csv", hourly_csv(17420) + "2016-07-01,1\n"), 1, ":17422: expected 8 fields, got 2");
  check_run(at("etth2.csv", "date,OT\n"), 1, "0 rows, expected 17420; 1 columns beside the date, expected 7");
  const char* name = "UWaveGestureLibrary_TRAIN.ts";
  check_run(at(name, gestures(120, 3, 315)), 0, "as published: 120 training and 320 test cases");
  check_run(at(name, gestures(119, 3, 315)), 1, "119 cases, expected 120");
  check_run(at(name, gestures(120, 2, 315)), 1, "2 dimensions in line 4, expected 3");
  check_run(at(name, gestures(120, 3, 316)), 1, "a series of length 316, expected at most 315");
  check_run(at("UWaveGestureLibrary_TEST.ts", gestures(120, 3, 315)), 1, "120 cases, expected 320");
  check_run(at(name, "@problemName\n1:2\n"), 1, "expected a line @data, got none");
  check_run(at("other.csv", ""), 1, "expected a file named as one of JapaneseVowels_TRAIN.ts");
  check_run((folder / "ETTm2.csv").string(), 1, "cannot read");
  check_run("--no-such-flag", 2, "unrecognized arguments");
}

}  // namespace elwise::testing
