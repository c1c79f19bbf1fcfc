#include "tools/experiments/ts_file.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <limits>

namespace elwise::tools {
namespace {

constexpr std::string_view kSpace = " \t";

std::string_view trimmed(std::string_view text) {
  const size_t first = text.find_first_not_of(kSpace);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kSpace) - first + 1);
}

/// What stands before `separator`, which is cut off `rest` with it.
std::string_view cut(std::string_view& rest, char separator) {
  const size_t end = std::min(rest.find(separator), rest.size());
  const std::string_view part = rest.substr(0, end);
  rest.remove_prefix(std::min(end + 1, rest.size()));
  return part;
}

std::string_view without_quotes(std::string_view text) {
  const bool quoted =
      text.size() >= 2 && (text.front() == '"' || text.front() == '\'') && text.back() == text.front();
  return quoted ? text.substr(1, text.size() - 2) : text;
}

std::string lower(std::string_view text) {
  std::string result(text);
  std::transform(result.begin(), result.end(), result.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return result;
}

/// The words of a line; a quoted one may hold spaces.
std::vector<std::string> words_of(std::string_view text) {
  std::vector<std::string> words;
  for (text = trimmed(text); !text.empty(); text = trimmed(text)) {
    const char quote = text.front();
    const bool is_quoted = quote == '"' || quote == '\'';
    const size_t close = is_quoted ? text.find(quote, 1) : std::string_view::npos;
    const size_t end =
        close == std::string_view::npos ? std::min(text.find_first_of(kSpace), text.size()) : close + 1;
    words.emplace_back(without_quotes(text.substr(0, end)));
    text.remove_prefix(end);
  }
  return words;
}

}  // namespace

TsReader::TsReader(const std::filesystem::path& path) : lines_(path) {
  read_header();
}

void TsReader::read_header() {
  std::string_view line;
  while (lines_.next(line)) {
    line = trimmed(line);
    if (line.empty() || line.front() == '#') continue;
    if (line.front() != '@') lines_.fail_here("expected @data before the series, got ", shown(line));
    const size_t end = std::min(line.find_first_of(kSpace), line.size());
    const std::string name = lower(line.substr(1, end - 1));
    if (name == "data") {
      finish_header();
      return;
    }
    read_field(name, trimmed(line.substr(end)));
  }
  lines_.fail_here("the file ends without @data");
}

void TsReader::read_field(std::string_view name, std::string_view value) {
  if (name == "problemname") {
    header_.problem = value;
  } else if (name == "timestamps") {
    if (read_flag(value)) lines_.fail_here("series with time stamps are not supported");
  } else if (name == "missing") {
    header_.may_miss_values = read_flag(value);
  } else if (name == "univariate") {
    univariate_ = read_flag(value);
  } else if (name == "dimensions" || name == "dimension") {
    header_.dimensions = read_count(value);
  } else if (name == "equallength") {
    header_.equal_length = read_flag(value);
  } else if (name == "serieslength") {
    header_.series_length = read_count(value);
  } else if (name == "classlabel") {
    read_class_labels(value);
  } else {
    lines_.fail_here("unknown header field ", shown("@" + std::string(name)));
  }
}

void TsReader::finish_header() {
  if (!labelled_) lines_.fail_here("expected @classLabel before @data");
  if (!univariate_) return;
  if (header_.dimensions > 1)
    lines_.fail_here("@univariate true contradicts @dimensions ", header_.dimensions);
  header_.dimensions = 1;
}

bool TsReader::read_flag(std::string_view value) const {
  const std::string flag = lower(value);
  if (flag != "true" && flag != "false") lines_.fail_here("expected true or false, got ", shown(value));
  return flag == "true";
}

int64_t TsReader::read_count(std::string_view value) const {
  int64_t count = 0;
  const auto parsed = std::from_chars(value.data(), value.data() + value.size(), count);
  if (parsed.ec != std::errc() || parsed.ptr != value.data() + value.size() || count < 1) {
    lines_.fail_here("expected a whole number above 0, got ", shown(value));
  }
  return count;
}

void TsReader::read_class_labels(std::string_view value) {
  const std::vector<std::string> words = words_of(value);
  if (words.empty() || !read_flag(words[0])) {
    lines_.fail_here("expected '@classLabel true' and the labels: series without a class are not supported");
  }
  header_.labels.assign(words.begin() + 1, words.end());
  if (header_.labels.empty()) lines_.fail_here("@classLabel names no label");
  std::vector<std::string> sorted = header_.labels;
  std::sort(sorted.begin(), sorted.end());
  const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
  if (twice != sorted.end()) lines_.fail_here("@classLabel names ", shown(*twice), " twice");
  labelled_ = true;
}

double TsReader::read_value(std::string_view text, int64_t dimension) const {
  text = trimmed(text);
  if (text == "?") {
    if (!header_.may_miss_values) lines_.fail_here("a value is missing, which contradicts @missing false");
    return std::numeric_limits<double>::quiet_NaN();
  }
  double value = 0;
  std::string_view digits = text;
  if (digits.starts_with('+') && !digits.starts_with("+-")) digits.remove_prefix(1);  // from_chars takes none
  const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  const bool whole = parsed.ec == std::errc() && parsed.ptr == digits.data() + digits.size();
  // f32 is what models compute in.
  if (!whole || !std::isfinite(static_cast<float>(value))) {
    lines_.fail_here("expected a number or ?, got ", shown(text), " in dimension ", dimension + 1);
  }
  return value;
}

std::vector<double> TsReader::read_dimension(std::string_view text, int64_t dimension) const {
  std::vector<double> values;
  values.reserve(static_cast<size_t>(std::count(text.begin(), text.end(), ',')) + 1);
  for (bool more = true; more;) {
    more = text.find(',') != std::string_view::npos;  // behind a last comma a value is expected
    values.push_back(read_value(cut(text, ','), dimension));
  }
  return values;
}

int64_t TsReader::read_label(std::string_view text) const {
  const std::string_view label = without_quotes(trimmed(text));
  const auto found = std::find(header_.labels.begin(), header_.labels.end(), label);
  if (found == header_.labels.end()) {
    lines_.fail_here("expected a label of @classLabel behind the last colon, got ", shown(label),
                     lines_.is_unfinished() ? "; the file ends within this line" : "");
  }
  return found - header_.labels.begin();
}

std::optional<Series> TsReader::next() {
  std::string_view line;
  do {
    if (!lines_.next(line)) return std::nullopt;
    line = trimmed(line);
  } while (line.empty() || line.front() == '#');
  const int64_t dimensions = std::count(line.begin(), line.end(), ':');
  if (header_.dimensions == 0 && dimensions > 0) header_.dimensions = dimensions;
  if (dimensions != header_.dimensions || dimensions == 0) {
    lines_.fail_here("expected ", header_.dimensions, " dimensions and a label, got ", dimensions,
                     dimensions == 1 ? " dimension" : " dimensions",
                     lines_.is_unfinished() ? "; the file ends within this line" : "");
  }
  Series series;
  for (int64_t dimension = 0; dimension < dimensions; ++dimension) {
    const std::vector<double> values = read_dimension(cut(line, ':'), dimension);
    const auto length = static_cast<int64_t>(values.size());
    if (dimension == 0) {
      series.length = length;
      series.values.resize(static_cast<size_t>(length * dimensions));
    }
    if (length != series.length) {
      lines_.fail_here("dimension ", dimension + 1, " has ", length, " values, the first has ",
                       series.length);
    }
    for (size_t i = 0; i < values.size(); ++i) {
      series.values[i * static_cast<size_t>(dimensions) + static_cast<size_t>(dimension)] = values[i];
    }
  }
  series.label = read_label(line);
  const std::optional<int64_t> expected = header_.series_length;
  if (expected && header_.equal_length && series.length != *expected) {
    lines_.fail_here("the series has ", series.length, " values, expected ", *expected,
                     " (@equalLength true)");
  }
  if (header_.equal_length) header_.series_length = series.length;
  return series;
}

int64_t SeriesSet::longest() const {
  int64_t length = 0;
  for (const Series& one : series) length = std::max(length, one.length);
  return length;
}

SeriesSet read_ts_file(const std::filesystem::path& path) {
  TsReader reader(path);
  SeriesSet set;
  while (auto series = reader.next()) set.series.push_back(std::move(*series));
  ELWISE_CHECK(!set.series.empty(), path.string(), ": expected a series behind @data, got none");
  set.header = reader.header();
  return set;
}

void match_labels(SeriesSet& set, const SeriesSet& like, const std::filesystem::path& path) {
  ELWISE_CHECK(set.header.dimensions == like.header.dimensions, path.string(), ": expected series of ",
               like.header.dimensions, " dimensions, as in the training set, got ", set.header.dimensions);
  std::vector<int64_t> number;
  for (const std::string& label : set.header.labels) {
    const auto found = std::find(like.header.labels.begin(), like.header.labels.end(), label);
    ELWISE_CHECK(found != like.header.labels.end(), path.string(), ": the training set has no label ",
                 shown(label));
    number.push_back(found - like.header.labels.begin());
  }
  for (Series& one : set.series) one.label = number[static_cast<size_t>(one.label)];
  set.header.labels = like.header.labels;
}

}  // namespace elwise::tools
