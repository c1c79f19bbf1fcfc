#include <doctest/doctest.h>

#include <cmath>

#include "tests/support/temporary_folder.h"
#include "tools/experiments/series_data.h"

namespace elwise::tools {
namespace {

const std::string kHeader =
    "# a comment\n@problemName Made up\n@timeStamps false\n@missing true\n@univariate false\n"
    "@dimensions 2\n@equalLength false\n@classLabel true one 'two words' 3\n@data\n";

/// The message of the Error that reading `text` ends with, without the file's path.
std::string error_of(const std::string& text) {
  const TemporaryFolder folder;
  const std::filesystem::path path = folder.write("x.ts", text);
  try {
    read_ts_file(path);
  } catch (const Error& error) {
    const std::string message = error.what();
    REQUIRE(message.starts_with(path.string()));
    return message.substr(path.string().size());
  }
  return "no error";
}

SeriesSet read(const std::string& text) {
  const TemporaryFolder folder;
  return read_ts_file(folder.write("x.ts", text));
}

/// NaN, which equals nothing, as -1.
std::vector<double> without_nan(std::vector<double> values) {
  for (double& value : values) {
    if (std::isnan(value)) value = -1;
  }
  return values;
}

}  // namespace

TEST_CASE("a .ts file: unequal lengths, missing values, quoted labels, comments, CRLF, no last newline") {
  const std::string text = kHeader + "1,2.5,+3:4, 5 ,-6e1:one\n\n# more\n?:7:\"two words\"\n8,?:9,10:3";
  std::string crlf = text;
  for (size_t at = 0; (at = crlf.find('\n', at)) != std::string::npos; at += 2) crlf.replace(at, 1, "\r\n");
  for (const std::string& form : {text, text + "\n", crlf, crlf + "\r\n"}) {
    const SeriesSet set = read(form);
    CHECK(set.header.problem == "Made up");
    CHECK(set.header.dimensions == 2);
    CHECK(set.header.labels == std::vector<std::string>{"one", "two words", "3"});
    REQUIRE(set.series.size() == 3);
    CHECK(set.longest() == 3);
    CHECK(set.series[0].values == std::vector<double>{1, 4, 2.5, 5, 3, -60});
    CHECK(without_nan(set.series[1].values) == std::vector<double>{-1, 7});
    CHECK(without_nan(set.series[2].values) == std::vector<double>{8, 9, -1, 10});
    CHECK(set.series[1].length == 1);
    CHECK(set.series[0].label == 0);
    CHECK(set.series[1].label == 1);
    CHECK(set.series[2].label == 2);
  }
}

TEST_CASE("a .ts file: the number of dimensions may follow from the first series or @univariate") {
  CHECK(read("@classLabel true a b\n@data\n1,2:3,4:5,6:b\n").header.dimensions == 3);
  CHECK(read("@univariate TRUE\n@ClassLabel true a b\n@DATA\n1,2:b\n").header.dimensions == 1);
}

TEST_CASE("a .ts file longer than a block of the reader") {
  std::string text = "@univariate true\n@classLabel true 0 1\n@data\n";
  for (int i = 0; i < 40; ++i) {
    for (int j = 0; j < 5000; ++j) text += std::to_string(i * 5000 + j) + (j < 4999 ? "," : ":");
    text += std::to_string(i % 2) + "\n";
  }
  const SeriesSet set = read(text);
  REQUIRE(set.series.size() == 40);
  for (size_t i = 0; i < 40; ++i) {
    REQUIRE(set.series[i].length == 5000);
    CHECK(set.series[i].values[4999] == static_cast<double>(i) * 5000 + 4999);
    CHECK(set.series[i].label == static_cast<int64_t>(i % 2));
  }
}

TEST_CASE("a .ts file: errors name the line") {
  const std::string good = "1,2:3,4:one\n";
  const std::pair<std::string, std::string> cases[] = {
      {"", ":0: the file ends without @data"},
      {"@problemName x\n@classLabel true a\n", ":2: the file ends without @data"},
      {"@classLabel true a\n1,2:a\n", ":2: expected @data before the series, got '1,2:a'"},
      {"@data\n1:a\n", ":1: expected @classLabel before @data"},
      {"@classLabel false\n@data\n",
       ":1: expected '@classLabel true' and the labels: series without a class are not supported"},
      {"@classLabel true\n@data\n", ":1: @classLabel names no label"},
      {"@classLabel true a b a\n@data\n", ":1: @classLabel names 'a' twice"},
      {"@classLabel maybe a\n@data\n", ":1: expected true or false, got 'maybe'"},
      {"@dimensions 2.5\n", ":1: expected a whole number above 0, got '2.5'"},
      {"@dimensions 0\n", ":1: expected a whole number above 0, got '0'"},
      {"# c\n@colour red\n", ":2: unknown header field '@colour'"},
      {"@timeStamps true\n", ":1: series with time stamps are not supported"},
      {"@univariate true\n@dimensions 3\n@classLabel true a\n@data\n",
       ":4: @univariate true contradicts @dimensions 3"},
      {kHeader, ": expected a series behind @data, got none"},
      {kHeader + good + "1,2:one\n", ":11: expected 2 dimensions and a label, got 1 dimension"},
      {kHeader + good + "1,2:3,4:5,6:one\n", ":11: expected 2 dimensions and a label, got 3 dimensions"},
      {kHeader + good + "1,2\n", ":11: expected 2 dimensions and a label, got 0 dimensions"},
      {kHeader + good + "1,2:3,",
       ":11: expected 2 dimensions and a label, got 1 dimension; the file ends within "
       "this line"},
      {kHeader + good + "1,2:3,4:on",
       ":11: expected a label of @classLabel behind the last colon, got 'on'; the file ends within this "
       "line"},
      {kHeader + good + "1,2:3,4:\n", ":11: expected a label of @classLabel behind the last colon, got ''"},
      {kHeader + "1,2:3,4:four\n", ":10: expected a label of @classLabel behind the last colon, got 'four'"},
      {kHeader + "\n1,2:3:one\n", ":11: dimension 2 has 1 values, the first has 2"},
      {kHeader + "1,x2:3,4:one\n", ":10: expected a number or ?, got 'x2' in dimension 1"},
      {kHeader + "1,2:3,4.5.6:one\n", ":10: expected a number or ?, got '4.5.6' in dimension 2"},
      {kHeader + "1,:3,4:one\n", ":10: expected a number or ?, got '' in dimension 1"},
      {kHeader + "1,nan:3,4:one\n", ":10: expected a number or ?, got 'nan' in dimension 1"},
      {kHeader + "1,inf:3,4:one\n", ":10: expected a number or ?, got 'inf' in dimension 1"},
      {kHeader + "1,2e99:3,4:one\n", ":10: expected a number or ?, got '2e99' in dimension 1"},
      {kHeader + "1,+-2:3,4:one\n", ":10: expected a number or ?, got '+-2' in dimension 1"},
      {kHeader + "1,\x02\xff" + std::string(40, 'z') + ":3,4:one\n",
       ":10: expected a number or ?, got '??" + std::string(38, 'z') + "..' in dimension 1"},
      {kHeader + "@data\n", ":10: expected 2 dimensions and a label, got 0 dimensions"},
      {"@missing false\n@classLabel true a\n@data\n1,?:a\n",
       ":4: a value is missing, which contradicts @missing false"},
      {"@equalLength true\n@seriesLength 3\n@classLabel true a\n@data\n1,2,3:a\n1,2:a\n",
       ":6: the series has 2 values, expected 3 (@equalLength true)"},
      {"@equalLength true\n@classLabel true a\n@data\n1,2:a\n1,2,3:a\n",
       ":5: the series has 3 values, expected 2 (@equalLength true)"},
  };
  for (const auto& [text, message] : cases) {
    CAPTURE(text);
    CHECK(error_of(text) == message);
  }
  const TemporaryFolder folder;
  CHECK_THROWS_WITH_AS(read_ts_file(folder / "none.ts"), doctest::Contains("none.ts"), Error);
  CHECK_THROWS_WITH_AS(read_ts_file(folder.path()), doctest::Contains(folder.path().c_str()), Error);
}

TEST_CASE("a test set's labels are numbered as the training set's") {
  const SeriesSet train = read("@classLabel true a b c\n@data\n1:a\n1:b\n1:c\n");
  SeriesSet test = read("@classLabel true c a\n@data\n1:a\n1:c\n");
  match_labels(test, train, "test.ts");
  CHECK(test.series[0].label == 0);
  CHECK(test.series[1].label == 2);
  CHECK(test.header.labels == train.header.labels);
  SeriesSet other = read("@classLabel true a d\n@data\n1:a\n");
  CHECK_THROWS_WITH_AS(match_labels(other, train, "test.ts"), "test.ts: the training set has no label 'd'",
                       Error);
  SeriesSet wide = read("@classLabel true a\n@data\n1:2:a\n");
  CHECK_THROWS_WITH_AS(match_labels(wide, train, "test.ts"),
                       "test.ts: expected series of 1 dimensions, as in the training set, got 2", Error);
}

TEST_CASE("missing values are interpolated, normalised series have mean 0 and deviation 1") {
  SeriesSet set = read("@classLabel true a\n@data\n?,1,?,?,4,?:?,?,?,?,?,?:a\n10,12:5,5:a\n");
  interpolate_missing(set);
  CHECK(without_nan(set.series[0].values) == std::vector<double>{1, -1, 1, -1, 2, -1, 3, -1, 4, -1, 4, -1});
  const Normalization all = normalization_of(set, {0, 1});
  CHECK(all.mean[0] == doctest::Approx((1 + 1 + 2 + 3 + 4 + 4 + 10 + 12) / 8.0));
  CHECK(all.mean[1] == 5);
  CHECK(all.deviation[0] == doctest::Approx(4.1382363));  // numpy.std(.., ddof=1)
  CHECK(all.deviation[1] == 1);                           // constant
  const Normalization second = normalization_of(set, {1});
  CHECK(second.mean[0] == 11);
  CHECK(second.deviation[0] == doctest::Approx(std::sqrt(2)));

  const SeriesTensors tensors(set, {1, 0}, second, 7);
  CHECK(tensors.count() == 2);
  const SeriesBatch batch = tensors.batch({1, 0}, 0, 2);
  CHECK(batch.values.shape() == Shape{2, 7, 2});
  const std::vector<float> values = batch.values.to_vector<float>();
  CHECK(values[0] == doctest::Approx(-10 / std::sqrt(2)));
  CHECK(values[1] == 0);  // no value at all: the mean
  CHECK(values[12] == 0);
  CHECK(values[14] == doctest::Approx(-1 / std::sqrt(2)));
  CHECK(values[16] == doctest::Approx(1 / std::sqrt(2)));
  CHECK(values[18] == 0);
  std::vector<bool> visible(14, false);
  for (const size_t i : {0, 1, 2, 3, 4, 5, 7, 8}) visible[i] = true;
  CHECK(batch.key_mask.to_vector<bool>() == visible);
  CHECK(batch.labels.to_vector<int64_t>() == std::vector<int64_t>{0, 0});
  CHECK(tensors.batch({1, 0}, 1, 2).values.shape() == Shape{1, 7, 2});
  CHECK_THROWS_WITH_AS(SeriesTensors(set, {0}, second, 5), "series: expected at most 5 values, got 6", Error);
}

}  // namespace elwise::tools
