#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "core/tensor.h"

namespace elwise {

namespace detail {

/// Closes a file descriptor at the end of its scope.
class FileDescriptor {
 public:
  FileDescriptor() = default;
  ~FileDescriptor() { close(); }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;

  /// ::open, again when interrupted. False, with errno set, when it fails.
  bool open(const std::filesystem::path& path, int flags);
  /// ::close. False, with errno set, when it fails.
  bool close();
  int get() const { return descriptor_; }

 private:
  int descriptor_ = -1;
};

}  // namespace detail

/// A regular file, read from its start. Every Error names the path and says what the system said.
class InputFile {
 public:
  explicit InputFile(std::filesystem::path path);

  const std::filesystem::path& path() const { return path_; }
  int64_t size() const { return size_; }
  /// Bytes not read yet.
  int64_t remaining() const { return size_ - position_; }

  /// Reads exactly `bytes` bytes. Throws Error when fewer are left.
  void read(void* to, int64_t bytes);
  /// Fills a CPU tensor with its elements as they lie in memory. Throws Error for a bool other than 0 or 1.
  void read_elements(const Tensor& tensor);

 private:
  std::filesystem::path path_;
  detail::FileDescriptor descriptor_;
  int64_t size_ = 0;
  int64_t position_ = 0;
};

/// A file that appears whole or not at all: it is written beside `path` under a temporary name, and renamed
/// by commit() once it is on the disk. Until then, and after an error, an older file of that name stays as it
/// was; the temporary one is removed. A path that names no regular file (a pipe, /dev/stdout) is written in
/// place. Every Error names the path and says what the system said.
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(const void* data, int64_t bytes);
  void write(std::string_view text) { write(text.data(), static_cast<int64_t>(text.size())); }
  /// Writes the elements of a CPU tensor as they lie in memory.
  void write_elements(const Tensor& tensor);

  /// Call once, after the last write.
  void commit();

 private:
  void open_temporary();

  std::filesystem::path path_;
  std::filesystem::path temporary_;  // empty when written in place, and after commit()
  detail::FileDescriptor descriptor_;
};

/// The contents of a file. Throws Error.
std::string read_file(const std::filesystem::path& path);

/// Replaces a file by `contents` through AtomicFile. Throws Error.
void write_file_atomically(const std::filesystem::path& path, std::string_view contents);

}  // namespace elwise
