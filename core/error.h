#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace elwise {

/// Every error that the library raises. The message names the op, what was expected and what came.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// An allocation that would pass the memory limit, or that the system refused. The message has the numbers.
class OutOfMemoryError : public Error {
 public:
  using Error::Error;
};

namespace detail {

template <class... Parts>
std::string concatenate(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

}  // namespace detail

/// Throws Error with all `parts` written one after the other.
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  throw Error(detail::concatenate(parts...));
}

}  // namespace elwise

/// Throws elwise::Error with the message parts unless `condition` holds:
/// ELWISE_CHECK(x.rank() == 2, "linear: expected a matrix, got ", x.shape());
#define ELWISE_CHECK(condition, ...) \
  do {                               \
    if (!(condition)) [[unlikely]]   \
      ::elwise::fail(__VA_ARGS__);   \
  } while (false)
