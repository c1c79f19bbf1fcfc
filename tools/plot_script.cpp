#include "tools/plot_script.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <string>
#include <vector>

#include "core/error.h"

namespace elwise::tools {
namespace {

std::filesystem::path path_of(const std::string& script) {
  std::error_code error;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", error);
  const auto installed = program.parent_path() / ELWISE_DATA_FROM_BIN / script;
  if (!error && std::filesystem::exists(installed, error)) return installed.lexically_normal();
  return std::filesystem::path(ELWISE_TOOLS_SOURCE_DIR) / script;
}

struct Ended {
  int status;          // of exit; 128 and the signal's number after one
  std::string output;  // stdout and stderr
};

/// Runs a program found on PATH, with nothing to read. Throws Error when it cannot be started.
Ended run_child(const std::vector<std::string>& arguments) {
  int ends[2];
  ELWISE_CHECK(::pipe2(ends, O_CLOEXEC) == 0, "cannot make a pipe: ", std::strerror(errno));
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, ends[1], STDERR_FILENO);
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  pid_t child = 0;
  const int failure = ::posix_spawnp(&child, argv[0], &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  ::close(ends[1]);
  Ended result = {};
  std::array<char, 4096> buffer;
  for (ssize_t got = 1; failure == 0 && got > 0;) {
    got = ::read(ends[0], buffer.data(), buffer.size());
    if (got > 0) result.output.append(buffer.data(), static_cast<size_t>(got));
    if (got < 0 && errno == EINTR) got = 1;
  }
  ::close(ends[0]);
  ELWISE_CHECK(failure == 0, "cannot run ", arguments[0], ": ", std::strerror(failure));
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  result.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return result;
}

}  // namespace

void make_plot_folder(const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  ELWISE_CHECK(!error, "plot: cannot create ", folder.string(), ": ", error.message());
}

void run_plot_script(const std::string& script, const std::filesystem::path& json,
                     const std::filesystem::path& folder) {
  const std::string kept = "; the measurements are in " + json.string();
  Ended ended;
  try {
    ended = run_child({"python3", path_of(script).string(), json.string(), "--out", folder.string()});
  } catch (const Error& error) {
    fail("plot: ", error.what(), " (apt-get install python3-matplotlib)", kept);
  }
  while (!ended.output.empty() && ended.output.back() == '\n') ended.output.pop_back();
  if (ended.status == 0) return;
  const size_t last = ended.output.rfind('\n');
  fail("plot: ", last == std::string::npos ? ended.output : ended.output.substr(last + 1), kept);
}

}  // namespace elwise::tools
