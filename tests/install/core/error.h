#pragma once

namespace consumer {

/// This header has the path of one of the library's: both must be usable in one program.
inline constexpr int kAnswer = 42;

}  // namespace consumer
