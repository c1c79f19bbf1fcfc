#include "core/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <system_error>

#include "core/error.h"

namespace elwise {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail_system(const char* action, const fs::path& path, int error) {
  fail(action, " ", path, ": ", std::generic_category().message(error));
}

int64_t byte_count(const Tensor& tensor) {
  return tensor.count() * size_of(tensor.dtype());
}

}  // namespace

bool detail::FileDescriptor::open(const fs::path& path, int flags) {
  do {
    descriptor_ = ::open(path.c_str(), flags | O_CLOEXEC, 0666);
  } while (descriptor_ < 0 && errno == EINTR);
  return descriptor_ >= 0;
}

bool detail::FileDescriptor::close() {
  if (descriptor_ < 0) return true;
  const int closing = descriptor_;
  descriptor_ = -1;
  return ::close(closing) == 0;
}

InputFile::InputFile(fs::path path) : path_(std::move(path)) {
  if (!descriptor_.open(path_, O_RDONLY)) fail_system("cannot open", path_, errno);
  struct stat status {};
  if (::fstat(descriptor_.get(), &status) != 0) fail_system("cannot read", path_, errno);
  ELWISE_CHECK(S_ISREG(status.st_mode), "cannot read ", path_, ": expected a regular file");
  size_ = status.st_size;
}

void InputFile::read(void* to, int64_t bytes) {
  ELWISE_CHECK(bytes <= remaining(), "cannot read ", path_, ": expected ", bytes, " bytes more after byte ",
               position_, ", the file has ", remaining());
  char* next = static_cast<char*>(to);
  while (bytes > 0) {
    const ssize_t got = ::read(descriptor_.get(), next, static_cast<size_t>(bytes));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail_system("cannot read", path_, errno);
    ELWISE_CHECK(got > 0, "cannot read ", path_, ": it became shorter while it was read");
    next += got;
    bytes -= got;
    position_ += got;
  }
}

void InputFile::read_elements(const Tensor& tensor) {
  ELWISE_CHECK(tensor.device() == kCpu, "cannot read ", path_, " to a tensor on ", tensor.device());
  read(tensor.data(), byte_count(tensor));
  if (tensor.dtype() == DType::boolean) {
    const auto* first = static_cast<const uint8_t*>(tensor.data());
    ELWISE_CHECK(std::all_of(first, first + tensor.count(), [](uint8_t byte) { return byte <= 1; }),
                 "cannot read ", path_, ": a bool is neither 0 nor 1");
  }
}

AtomicFile::AtomicFile(fs::path path) : path_(std::move(path)) {
  std::error_code error;
  if (fs::is_symlink(path_, error)) {  // replace the file, not the link
    if (const fs::path target = fs::canonical(path_, error); !error) path_ = target;
  }
  const fs::file_status old = fs::status(path_, error);
  if (fs::is_directory(old)) fail_system("cannot write", path_, EISDIR);
  if (fs::exists(old) && !fs::is_regular_file(old)) {
    if (!descriptor_.open(path_, O_WRONLY)) fail_system("cannot write", path_, errno);
    return;
  }
  // A rename would pass over a read-only file.
  if (fs::exists(old) && ::access(path_.c_str(), W_OK) != 0) fail_system("cannot write", path_, errno);
  open_temporary();
  if (fs::exists(old)) fs::permissions(temporary_, old.permissions(), error);
}

AtomicFile::~AtomicFile() {
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::open_temporary() {
  static std::atomic<int64_t> serial = 0;
  fs::path candidate;
  do {
    candidate = path_;
    candidate += ".tmp-" + std::to_string(::getpid()) + "-" + std::to_string(serial++);
  } while (!descriptor_.open(candidate, O_WRONLY | O_CREAT | O_EXCL) && errno == EEXIST);
  if (descriptor_.get() < 0) fail_system("cannot write", path_, errno);
  temporary_ = std::move(candidate);
}

void AtomicFile::write(const void* data, int64_t bytes) {
  const char* next = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t put = ::write(descriptor_.get(), next, static_cast<size_t>(bytes));
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) fail_system("cannot write", path_, errno);
    next += put;
    bytes -= put;
  }
}

void AtomicFile::write_elements(const Tensor& tensor) {
  ELWISE_CHECK(tensor.device() != kMeta, "cannot write ", path_, " from a tensor on meta");
  write(on_host(tensor).data(), byte_count(tensor));
}

void AtomicFile::commit() {
  const bool in_place = temporary_.empty();
  if (!in_place && ::fsync(descriptor_.get()) != 0) fail_system("cannot write", path_, errno);
  if (!descriptor_.close()) fail_system("cannot write", path_, errno);
  if (in_place) return;
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail_system("cannot write", path_, errno);
  temporary_.clear();
  // The file is whole whatever comes now; this makes the rename last through a power cut where it can.
  detail::FileDescriptor folder;
  if (folder.open(path_.has_parent_path() ? path_.parent_path() : fs::path("."), O_RDONLY | O_DIRECTORY)) {
    static_cast<void>(::fsync(folder.get()));
  }
}

std::string read_file(const fs::path& path) {
  InputFile file(path);
  std::string contents(static_cast<size_t>(file.size()), '\0');
  file.read(contents.data(), file.size());
  return contents;
}

void write_file_atomically(const fs::path& path, std::string_view contents) {
  AtomicFile file(path);
  file.write(contents);
  file.commit();
}

}  // namespace elwise
