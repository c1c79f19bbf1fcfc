#pragma once

#include <filesystem>
#include <fstream>
#include <optional>

#include <nlohmann/json.hpp>

namespace elwise::tools {

/// null where there is no value.
inline nlohmann::ordered_json value_or_null(const std::optional<double>& value) {
  return value ? nlohmann::ordered_json(*value) : nlohmann::ordered_json();
}

/// A file of JSON objects, one per line, each on the disk as soon as write() returns. An older file of that
/// name is replaced by the first object, not before, or added to.
class JsonLines {
 public:
  /// Throws Error for a path that cannot be written. An empty path writes nothing.
  explicit JsonLines(std::filesystem::path path, bool append = false);

  /// Throws Error when the object cannot be written (a full disk); lines written before stay.
  void write(const nlohmann::ordered_json& object);

 private:
  void open(std::ios::openmode mode);

  std::filesystem::path path_;
  std::ofstream file_;
  bool started_ = false;
};

}  // namespace elwise::tools
