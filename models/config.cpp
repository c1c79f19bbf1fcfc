#include "models/config.h"

#include <nlohmann/json.hpp>

#include "core/file.h"

namespace elwise::models {
namespace {

constexpr const char* kFile = "config.json";

/// Calls visit(name, field) for every field that JSON has a type for.
template <class Config, class Visitor>
void for_each_field(Config& config, const Visitor& visit) {
  visit("vocabulary", config.vocabulary);
  visit("hidden", config.hidden);
  visit("layers", config.layers);
  visit("heads", config.heads);
  visit("intermediate", config.intermediate);
  visit("positions", config.positions);
  visit("sinusoidal", config.sinusoidal);
  visit("token_types", config.token_types);
  visit("dropout", config.dropout);
  visit("attention_dropout", config.attention_dropout);
  visit("eps", config.eps);
  visit("initializer_deviation", config.initializer_deviation);
  visit("causal", config.causal);
  visit("pooler", config.pooler);
}

DType dtype_named(const std::string& name) {
  for (const DType dtype : {DType::f32, DType::f64, DType::bf16}) {
    if (name == name_of(dtype)) return dtype;
  }
  fail("config: expected dtype f32, f64 or bf16, got ", name);
}

nn::NormPlacement norm_named(const std::string& name) {
  if (name == "pre") return nn::NormPlacement::pre;
  ELWISE_CHECK(name == "post", "config: expected norm pre or post, got ", name);
  return nn::NormPlacement::post;
}

}  // namespace

std::string config_text(const BertConfig& config) {
  nlohmann::ordered_json json;
  for_each_field(config, [&](const char* name, const auto& field) { json[name] = field; });
  json["norm"] = config.norm == nn::NormPlacement::pre ? "pre" : "post";
  json["attention"] = config.attention.name();
  json["dtype"] = std::string(name_of(config.options.dtype));
  return json.dump(2) + "\n";
}

void save_config(const std::filesystem::path& folder, const BertConfig& config) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  ELWISE_CHECK(!error, "config: cannot create ", folder.string(), ": ", error.message());
  write_file_atomically(folder / kFile, config_text(config));
}

BertConfig parse_config(const std::string& text, Device device) {
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  ELWISE_CHECK(!json.is_discarded(), "it is not JSON");
  BertConfig config;
  for_each_field(config, [&](const char* name, auto& field) { json.at(name).get_to(field); });
  config.norm = norm_named(json.at("norm").get<std::string>());
  config.attention = nn::Mechanism::parse(json.at("attention").get<std::string>());
  config.options = {.dtype = dtype_named(json.at("dtype").get<std::string>()), .device = device};
  return config;
}

BertConfig load_config(const std::filesystem::path& folder, Device device) {
  const std::filesystem::path path = folder / kFile;
  const std::string text = read_file(path);
  try {
    return parse_config(text, device);
  } catch (const std::exception& problem) {
    fail("config: ", path.string(), " is damaged: ", problem.what());
  }
}

}  // namespace elwise::models
