#pragma once

#include <filesystem>
#include <map>
#include <string>

#include "core/tensor.h"

namespace elwise {

// The safetensors format (github.com/huggingface/safetensors): the length of a JSON header as 8 bytes, the
// header (dtype, shape and place of every tensor, and free text under "__metadata__"), the elements.
// dtypes: F32, F64, BF16, I64, I16, BOOL. Only for little-endian machines. Files written here have a checksum
// among the free text, so that damage is found; files of others are read without.

/// Every tensor of the file, on the CPU; `metadata`, where given, receives the free text. Throws Error,
/// naming the file and the tensor, for anything that the format does not allow, for any other dtype, and
/// where the file's checksum is not that of its contents.
std::map<std::string, Tensor> load_safetensors(const std::filesystem::path& path,
                                               std::map<std::string, std::string>* metadata = nullptr);

/// Writes CPU tensors through AtomicFile: whole or not at all. Throws Error, naming the file.
void save_safetensors(const std::filesystem::path& path, const std::map<std::string, Tensor>& tensors,
                      const std::map<std::string, std::string>& metadata = {});

}  // namespace elwise
