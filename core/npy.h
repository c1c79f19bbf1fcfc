#pragma once

#include <filesystem>

#include "core/tensor.h"

namespace elwise {

// NumPy's .npy format, versions 1 and 2, for little-endian machines. dtypes: f32 '<f4', f64 '<f8', i64 '<i8',
// i16 '<i2', bool '|b1'. Only row-major arrays.

/// The array of the file, on the CPU. Throws Error, naming the file, for anything else.
Tensor load_npy(const std::filesystem::path& path);

/// Writes a CPU tensor through AtomicFile: whole or not at all. Throws Error, naming the file; bf16 has no
/// .npy dtype.
void save_npy(const std::filesystem::path& path, const Tensor& tensor);

}  // namespace elwise
