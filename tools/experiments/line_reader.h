#pragma once

#include <string>
#include <string_view>

#include "core/file.h"

namespace elwise::tools {

/// Text in quotes for an error message: a damaged file's may be long, or no text.
std::string shown(std::string_view text);

/// The lines of a text file, one at a time, whatever their lengths; of the file only a block is in memory.
class LineReader {
 public:
  /// Throws Error that names a path which cannot be read.
  explicit LineReader(const std::filesystem::path& path) : file_(path) {}

  /// The next line without its end ("\n" or "\r\n"), valid until the next call. False behind the last.
  bool next(std::string_view& line);
  /// The number of that line, counted from 1.
  int64_t number() const { return number_; }
  /// Whether the file ended without the end of that line: it may be cut off.
  bool is_unfinished() const { return unfinished_; }

  /// Throws Error "<path>:<number>: <parts>".
  template <class... Parts>
  [[noreturn]] void fail_here(const Parts&... parts) const {
    fail(file_.path().string(), ":", number_, ": ", parts...);
  }

 private:
  InputFile file_;
  std::string buffer_;
  size_t begin_ = 0;  // of what was not returned yet
  int64_t number_ = 0;
  bool unfinished_ = false;
};

}  // namespace elwise::tools
