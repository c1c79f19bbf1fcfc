#include "tests/support/cuda/traffic/kernel_names.h"

#include <cxxabi.h>
#include <elf.h>
#include <link.h>

#include <cstdlib>
#include <cstring>
#include <memory>

#include "core/error.h"
#include "core/file.h"

namespace emulation {
namespace {

/// How far from its addresses in the file the program was loaded.
uintptr_t load_offset() {
  uintptr_t offset = 0;
  const auto first = [](dl_phdr_info* info, size_t, void* result) {
    *static_cast<uintptr_t*>(result) = info->dlpi_addr;
    return 1;  // the program itself comes first
  };
  dl_iterate_phdr(first, &offset);
  return offset;
}

template <class T>
T read_at(const std::string& file, size_t offset) {
  T result;
  ELWISE_CHECK(offset + sizeof(T) <= file.size(), "kernel names: the program's file ends early");
  std::memcpy(&result, file.data() + offset, sizeof(T));
  return result;
}

}  // namespace

KernelNames::KernelNames() {
  const std::string file = elwise::read_file("/proc/self/exe");
  const uintptr_t offset = load_offset();
  const auto header = read_at<Elf64_Ehdr>(file, 0);
  for (size_t s = 0; s < header.e_shnum; ++s) {
    const auto section = read_at<Elf64_Shdr>(file, header.e_shoff + s * header.e_shentsize);
    if (section.sh_type != SHT_SYMTAB) continue;
    const auto names = read_at<Elf64_Shdr>(file, header.e_shoff + section.sh_link * header.e_shentsize);
    for (size_t at = section.sh_offset; at < section.sh_offset + section.sh_size; at += section.sh_entsize) {
      const auto symbol = read_at<Elf64_Sym>(file, at);
      if (ELF64_ST_TYPE(symbol.st_info) != STT_FUNC || symbol.st_value == 0) continue;
      mangled_[offset + symbol.st_value] = file.c_str() + names.sh_offset + symbol.st_name;
    }
  }
  ELWISE_CHECK(!mangled_.empty(), "kernel names: the program has no symbol table");
}

std::string KernelNames::of(const void* kernel) const {
  const auto found = mangled_.find(reinterpret_cast<uintptr_t>(kernel));
  ELWISE_CHECK(found != mangled_.end(), "kernel names: no function starts at ", kernel);
  const std::unique_ptr<char, decltype(&std::free)> name(
      abi::__cxa_demangle(found->second.c_str(), nullptr, nullptr, nullptr), std::free);
  return name != nullptr ? name.get() : found->second;
}

}  // namespace emulation
