#!/usr/bin/env bash
# Installs what Elwise needs to be built and tested, on Debian and Ubuntu. Does nothing where nothing is missing.
set -euo pipefail

# package: what it is for
needs="g++: the C++20 compiler
cmake: the build (3.25 or newer)
ninja-build: the build, faster than make
libdnnl-dev: oneDNN, matrix products on the CPU
ocl-icd-opencl-dev: asked for by oneDNN's CMake files
opencl-c-headers: asked for by oneDNN's CMake files
libhwy-dev: Highway, the SIMD kernels
nlohmann-json3-dev: JSON in safetensors files and results
libfmt-dev: the programs' text output
libcli11-dev: the programs' options
libbenchmark-dev: Google Benchmark, the kernels' benchmarks
doctest-dev: the tests
clang-format: the test of the source format
python3: the tests of the source tree
python3-matplotlib: the figures of --plot"

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
  printf 'setup: this system has no apt; install these (Debian names) by your own means:\n%s\n' "$needs" >&2
  exit 1
fi

missing=()
while IFS=: read -r package reason; do
  if [[ "$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null)" != installed ]]; then
    printf 'setup: missing %s:%s\n' "$package" "$reason"
    missing+=("$package")
  fi
done <<<"$needs"
if ((${#missing[@]} == 0)); then
  exit 0
fi

as_root=()
if ((EUID != 0)); then
  if ! command -v sudo >/dev/null; then
    printf 'setup: run as root: apt-get install %s\n' "${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo)
fi
"${as_root[@]}" apt-get update
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "${missing[@]}"
