#pragma once

#include <cstdint>
#include <vector>

namespace elwise::cpu {

/// Memory that the calling thread keeps, aligned to 64 bytes: for tiles, and for a row or a vector of columns
/// of a tensor. Contents are unspecified; valid until the thread's next call for the same T.
template <class T>
T* thread_scratch(int64_t elements) {
  struct alignas(64) Line {
    T elements[64 / sizeof(T)];
  };
  constexpr int64_t kLine = 64 / sizeof(T);
  thread_local std::vector<Line> lines;
  const auto count = static_cast<size_t>((elements + kLine - 1) / kLine);
  if (lines.size() < count) lines.resize(count);
  return lines.data()->elements;
}

}  // namespace elwise::cpu
