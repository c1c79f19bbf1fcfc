#include "core/file.h"

#include <doctest/doctest.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <iterator>

#include "tests/support/temporary_folder.h"

namespace elwise {
namespace {

namespace fs = std::filesystem;

int64_t count_files(const TemporaryFolder& folder) {
  return std::distance(fs::directory_iterator(folder.path()), fs::directory_iterator());
}

/// Makes a write that takes a file past `bytes` fail (EFBIG), as on a full disk, until the end of the scope.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : handler_(::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &old_);
    const rlimit limit{bytes, old_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &old_);
    ::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit old_{};
  void (*handler_)(int);
};

TEST_CASE("a file written atomically reads back") {
  const TemporaryFolder folder;
  write_file_atomically(folder / "a", "first");
  CHECK(read_file(folder / "a") == "first");
  write_file_atomically(folder / "a", "");
  CHECK(read_file(folder / "a").empty());
  CHECK(count_files(folder) == 1);
}

TEST_CASE("nothing is seen before commit, and nothing is left without it") {
  const TemporaryFolder folder;
  write_file_atomically(folder / "a", "old");
  {
    AtomicFile file(folder / "a");
    file.write("new");
    CHECK(read_file(folder / "a") == "old");
    CHECK(count_files(folder) == 2);
  }
  CHECK(read_file(folder / "a") == "old");
  CHECK(count_files(folder) == 1);
}

TEST_CASE("two writers of one file do not meet") {
  const TemporaryFolder folder;
  AtomicFile first(folder / "a"), second(folder / "a");
  first.write("first");
  second.write("second");
  second.commit();
  first.commit();
  CHECK(read_file(folder / "a") == "first");
  CHECK(count_files(folder) == 1);
}

TEST_CASE("where the disk is full the old file stays") {
  const TemporaryFolder folder;
  write_file_atomically(folder / "a", "old");
  const std::string large(100'000, 'x');
  {
    const FileSizeLimit limit(50'000);
    const std::string expected = "cannot write \"" + (folder / "a").string() + "\": File too large";
    CHECK_THROWS_WITH_AS(write_file_atomically(folder / "a", large), expected.c_str(), Error);
  }
  CHECK(read_file(folder / "a") == "old");
  CHECK(count_files(folder) == 1);
}

TEST_CASE("a path that is no regular file is written in place") {
  if (!fs::exists("/dev/full")) return;
  CHECK_THROWS_WITH_AS(write_file_atomically("/dev/full", "x"),
                       "cannot write \"/dev/full\": No space left on device", Error);
  CHECK(fs::is_character_file("/dev/full"));
  write_file_atomically("/dev/null", "x");
  CHECK(fs::is_character_file("/dev/null"));
}

TEST_CASE("a file that cannot be written is an error") {
  const TemporaryFolder folder;
  const std::string missing = (folder / "no").string() + "/a";
  CHECK_THROWS_WITH_AS(write_file_atomically(missing, "x"),
                       ("cannot write \"" + missing + "\": No such file or directory").c_str(), Error);
  CHECK_THROWS_WITH_AS(write_file_atomically(folder.path(), "x"),
                       ("cannot write \"" + folder.path().string() + "\": Is a directory").c_str(), Error);
  if (::geteuid() == 0) return;  // root may write everything
  write_file_atomically(folder / "a", "old");
  fs::permissions(folder / "a", fs::perms::owner_read);
  CHECK_THROWS_WITH_AS(write_file_atomically(folder / "a", "x"),
                       ("cannot write \"" + (folder / "a").string() + "\": Permission denied").c_str(),
                       Error);
  CHECK(read_file(folder / "a") == "old");
}

TEST_CASE("a link and the permissions of the old file survive") {
  const TemporaryFolder folder;
  write_file_atomically(folder / "a", "old");
  fs::permissions(folder / "a", fs::perms::owner_read | fs::perms::owner_write);
  fs::create_symlink("a", folder / "link");
  write_file_atomically(folder / "link", "new");
  CHECK(fs::is_symlink(folder / "link"));
  CHECK(read_file(folder / "a") == "new");
  CHECK(fs::status(folder / "a").permissions() == (fs::perms::owner_read | fs::perms::owner_write));
}

TEST_CASE("reading past the end is an error that names the file") {
  const TemporaryFolder folder;
  write_file_atomically(folder / "a", "12345");
  InputFile file(folder / "a");
  CHECK(file.size() == 5);
  char bytes[8] = {};
  file.read(bytes, 3);
  CHECK(std::string(bytes) == "123");
  CHECK(file.remaining() == 2);
  const std::string expected =
      "cannot read \"" + (folder / "a").string() + "\": expected 4 bytes more after byte 3, the file has 2";
  CHECK_THROWS_WITH_AS(file.read(bytes, 4), expected.c_str(), Error);

  fs::resize_file(folder / "a", 4);
  CHECK_THROWS_AS(file.read(bytes, 2), Error);
}

TEST_CASE("only regular files are read") {
  const TemporaryFolder folder;
  CHECK_THROWS_WITH_AS(
      read_file(folder / "none"),
      ("cannot open \"" + (folder / "none").string() + "\": No such file or directory").c_str(), Error);
  CHECK_THROWS_WITH_AS(read_file(folder.path()),
                       ("cannot read \"" + folder.path().string() + "\": expected a regular file").c_str(),
                       Error);
}

TEST_CASE("elements are read and written as they lie in memory") {
  const TemporaryFolder folder;
  const Tensor written = from_vector<double>({1.5, -2}, {2});
  AtomicFile output(folder / "a");
  output.write_elements(written);
  output.commit();
  const Tensor read = empty({2}, {.dtype = DType::f64});
  InputFile(folder / "a").read_elements(read);
  CHECK(read.to_vector<double>() == written.to_vector<double>());

  write_file_atomically(folder / "b", std::string("\x01\x02", 2));
  CHECK_THROWS_AS(InputFile(folder / "b").read_elements(empty({2}, {.dtype = DType::boolean})), Error);
  const Tensor meta = empty({2}, {.device = kMeta});
  CHECK_THROWS_AS(InputFile(folder / "a").read_elements(meta), Error);
  CHECK_THROWS_AS(AtomicFile(folder / "c").write_elements(meta), Error);
}

}  // namespace
}  // namespace elwise
