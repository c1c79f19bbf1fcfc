#!/usr/bin/env bash
# Builds train_bert_cost and runs it with its default settings: what one training step of BERT costs with
# element-wise attention and with softmax attention. Arguments are passed on: tools/quickstart.sh --help
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tools/setup.sh
if command -v ninja >/dev/null; then
  export CMAKE_GENERATOR=${CMAKE_GENERATOR:-Ninja}
fi
cmake --preset release
cmake --build --preset release --parallel "$(nproc)" --target train_bert_cost
exec build/release/tools/train_bert_cost "$@"
