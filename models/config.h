#pragma once

#include <filesystem>
#include <string>

#include "models/bert.h"

namespace elwise::models {

/// `config`, all but its device, as JSON.
std::string config_text(const BertConfig& config);

/// What config_text wrote, perhaps among other fields, for a model on `device`. Throws an
/// exception for any other text.
BertConfig parse_config(const std::string& text, Device device = kCpu);

/// Writes config_text to `folder`/config.json, beside a checkpoint
/// (nn/checkpoint.h), through a file that is then renamed. Throws Error when it cannot write.
void save_config(const std::filesystem::path& folder, const BertConfig& config);

/// What save_config wrote, for a model on `device`. Throws Error for a missing or damaged file.
BertConfig load_config(const std::filesystem::path& folder, Device device = kCpu);

}  // namespace elwise::models
