#!/usr/bin/env bash
# Installs what is missing, builds and runs the tests. Arguments name presets: tools/test.sh release asan
# Default: release. Further arguments for ctest come after --: tools/test.sh asan -- --label-regex ops
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

presets=()
while (($# > 0)) && [[ "$1" != -- ]]; do
  presets+=("$1")
  shift
done
shift $(($# > 0))
if ((${#presets[@]} == 0)); then
  presets=(release)
fi

tools/setup.sh
if command -v ninja >/dev/null; then
  export CMAKE_GENERATOR=${CMAKE_GENERATOR:-Ninja}
fi
for preset in "${presets[@]}"; do
  cmake --preset "$preset"
  cmake --build --preset "$preset" --parallel "$(nproc)"
  ctest --preset "$preset" --parallel "$(nproc)" "$@"
done
