#include "tools/experiments/line_reader.h"

#include <algorithm>

namespace elwise::tools {

std::string shown(std::string_view text) {
  constexpr size_t kLongest = 40;
  std::string result(text.substr(0, kLongest));
  std::replace_if(
      result.begin(), result.end(), [](unsigned char c) { return c < ' ' || c >= 0x7F; }, '?');
  return "'" + result + (text.size() > kLongest ? "..'" : "'");
}

bool LineReader::next(std::string_view& line) {
  constexpr int64_t kBlock = 1 << 18;
  size_t end = buffer_.find('\n', begin_);
  while (end == std::string::npos && file_.remaining() > 0) {
    buffer_.erase(0, begin_);
    begin_ = 0;
    const size_t kept = buffer_.size();
    const int64_t bytes = std::min(kBlock, file_.remaining());
    buffer_.resize(kept + static_cast<size_t>(bytes));
    file_.read(buffer_.data() + kept, bytes);
    end = buffer_.find('\n', kept);
  }
  unfinished_ = end == std::string::npos;
  if (unfinished_ && begin_ == buffer_.size()) return false;
  end = std::min(end, buffer_.size());
  line = std::string_view(buffer_).substr(begin_, end - begin_);
  if (!unfinished_ && line.ends_with('\r')) line.remove_suffix(1);
  begin_ = std::min(end + 1, buffer_.size());
  ++number_;
  return true;
}

}  // namespace elwise::tools
