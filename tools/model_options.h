#pragma once

#include <string>

#include <nlohmann/json.hpp>

#include "models/bert.h"
#include "tools/console.h"

// The model that a program measures, on its command line and in its JSON lines.

namespace elwise::tools {

/// How the names of mechanisms are listed in --help.
inline constexpr const char* kAttentionHelp =
    "mechanisms, comma-separated: sa, sa-tiled, la, aft, ea, ea-N or ea-series-composed-N (N even, 0 .. 16), "
    "none";

/// --layers, --hidden, --heads, --intermediate and --vocab.
void add_size_options(CLI::App& app, models::BertConfig& model);

/// How a decoder that is trained is built, as the command line names it.
struct DecoderOptions {
  std::string norm = "pre";
  std::string positions = "sinusoidal";
};

/// --norm, --positions, --deviation and --dropout.
void add_decoder_options(CLI::App& app, DecoderOptions& options, models::BertConfig& model);
/// Puts the options into the model.
void finish_decoder(const DecoderOptions& options, models::BertConfig& model);

/// --dtype, for parse_dtype.
void add_dtype(CLI::App& app, std::string& dtype);
DType parse_dtype(const std::string& name);

/// What CLI11 cannot check: a model of dropout 0 gets dtype and device by their names. Throws UsageError for
/// a device that is not one and heads that do not divide hidden, Error for a device that is not there.
void finish_model(models::BertConfig& model, const std::string& dtype, const std::string& device);

/// The mechanism of that name. Throws UsageError that lists them for any other.
nn::Mechanism parse_attention(const std::string& name);

/// attention, order, device, dtype, causal, layers, hidden, heads, intermediate, vocabulary.
nlohmann::ordered_json to_json(const models::BertConfig& model);

}  // namespace elwise::tools
