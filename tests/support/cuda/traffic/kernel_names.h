#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>

namespace emulation {

/// The names of this program's functions, those of internal linkage too, from its symbol table.
class KernelNames {
 public:
  /// Throws elwise::Error where the program was stripped.
  KernelNames();

  /// "void elwise::cuda::(anonymous namespace)::fill_kernel<float>(float*, long, float, bool)".
  std::string of(const void* kernel) const;

 private:
  std::unordered_map<uintptr_t, std::string> mangled_;  // by address
};

}  // namespace emulation
