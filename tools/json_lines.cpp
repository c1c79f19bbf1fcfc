#include "tools/json_lines.h"

#include <cerrno>
#include <cstring>

#include "core/error.h"

namespace elwise::tools {

JsonLines::JsonLines(std::filesystem::path path, bool append) : path_(std::move(path)), started_(append) {
  if (!path_.empty()) open(std::ios::app);
}

void JsonLines::open(std::ios::openmode mode) {
  errno = 0;
  file_ = std::ofstream(path_, mode);
  ELWISE_CHECK(file_, "json: cannot write ", path_.string(), ": ", std::strerror(errno));
}

void JsonLines::write(const nlohmann::ordered_json& object) {
  if (path_.empty()) return;
  if (!started_) open(std::ios::trunc);
  started_ = true;
  errno = 0;
  file_ << object.dump() << '\n' << std::flush;
  ELWISE_CHECK(file_, "json: cannot write to ", path_.string(), ": ", std::strerror(errno));
}

}  // namespace elwise::tools
