#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "tools/experiments/line_reader.h"

namespace elwise::tools {

/// A time series of several dimensions, and its class.
struct Series {
  int64_t length = 0;
  std::vector<double> values;  // [length, dimensions]; NaN where missing
  int64_t label = 0;           // an index into TsHeader::labels
};

/// What a .ts file says of its series.
struct TsHeader {
  std::string problem;              // @problemName
  int64_t dimensions = 0;           // @dimensions; 1 with @univariate true; else those of the first series
  std::vector<std::string> labels;  // of @classLabel, without quotes
  std::optional<int64_t> series_length = {};  // @seriesLength
  bool equal_length = false;
  bool may_miss_values = true;
};

/// Reads the .ts files of the UEA archive (Bagnall et al., arXiv 1811.00075; the format is sktime's): a
/// header of "@name value" lines, "@data", then a series per line: its dimensions between colons, their
/// values between commas, a label last. Comments ("#"), empty lines and CRLF are fine, missing values are
/// "?". Every Error says
/// "<path>:<line>: what is wrong".
class TsReader {
 public:
  /// Reads the header. Throws Error for one that is not of labelled series, or names what it does not know.
  explicit TsReader(const std::filesystem::path& path);

  const TsHeader& header() const { return header_; }

  /// The next series, nothing behind the last. Throws Error for a line that is not one, and for series that
  /// contradict the header.
  std::optional<Series> next();

 private:
  void read_header();
  void read_field(std::string_view name, std::string_view value);
  void finish_header();
  bool read_flag(std::string_view value) const;
  int64_t read_count(std::string_view value) const;
  void read_class_labels(std::string_view value);
  std::vector<double> read_dimension(std::string_view text, int64_t dimension) const;
  double read_value(std::string_view text, int64_t dimension) const;
  int64_t read_label(std::string_view text) const;

  LineReader lines_;
  TsHeader header_;
  bool univariate_ = false;
  bool labelled_ = false;
};

/// All series of a file.
struct SeriesSet {
  TsHeader header;
  std::vector<Series> series;

  /// Of its longest series.
  int64_t longest() const;
};

/// Throws Error as TsReader does, and for a file without a series.
SeriesSet read_ts_file(const std::filesystem::path& path);

/// Numbers the labels of `set` (a test set) as those of `like` (the training set) are. Throws Error, naming
/// `path`, for a label or a number of dimensions that is not the other's.
void match_labels(SeriesSet& set, const SeriesSet& like, const std::filesystem::path& path);

}  // namespace elwise::tools
