#include "tools/model_options.h"

#include <fmt/core.h>

#include "core/cost.h"

namespace elwise::tools {

void add_size_options(CLI::App& app, models::BertConfig& model) {
  const auto count = positive_number();
  app.add_option("--layers", model.layers, "encoder layers")->check(count)->capture_default_str();
  app.add_option("--hidden", model.hidden, "hidden size")->check(count)->capture_default_str();
  app.add_option("--heads", model.heads, "heads of sa and la")->check(count)->capture_default_str();
  app.add_option("--intermediate", model.intermediate, "size between the two feed-forward products")
      ->check(count)
      ->capture_default_str();
  app.add_option("--vocab", model.vocabulary, "vocabulary size")->check(count)->capture_default_str();
}

void add_decoder_options(CLI::App& app, DecoderOptions& options, models::BertConfig& model) {
  app.add_option("--norm", options.norm, "LayerNorm before each block (pre) or after it (post)")
      ->check(CLI::IsMember({"pre", "post"}))
      ->capture_default_str();
  app.add_option("--positions", options.positions, "sinusoidal (fixed) or learned")
      ->check(CLI::IsMember({"sinusoidal", "learned"}))
      ->capture_default_str();
  app.add_option("--deviation", model.initializer_deviation, "of weights and tables at first")
      ->check(positive_number())
      ->capture_default_str();
  app.add_option("--dropout", model.dropout, "of embeddings and block outputs, while training")
      ->check(CLI::Range(0.0, 0.9))
      ->capture_default_str();
}

void finish_decoder(const DecoderOptions& options, models::BertConfig& model) {
  model.norm = options.norm == "pre" ? nn::NormPlacement::pre : nn::NormPlacement::post;
  model.sinusoidal = options.positions == "sinusoidal";
}

void add_dtype(CLI::App& app, std::string& dtype) {
  app.add_option("--dtype", dtype, "f32, f64, or bf16 with optimizer steps in f32")
      ->check(CLI::IsMember({"f32", "f64", "bf16"}))
      ->capture_default_str();
}

DType parse_dtype(const std::string& name) {
  return name == "f64" ? DType::f64 : name == "bf16" ? DType::bf16 : DType::f32;
}

void finish_model(models::BertConfig& model, const std::string& dtype, const std::string& device) {
  model.dropout = model.attention_dropout = 0;
  try {
    model.options = {.dtype = parse_dtype(dtype), .device = parse_device(device)};
  } catch (const Error& error) {
    throw UsageError(error.what());
  }
  check_available(model.options.device);
  if (model.hidden % model.heads != 0) {
    throw UsageError(fmt::format("hidden: {} is not divisible by {} heads", model.hidden, model.heads));
  }
}

nn::Mechanism parse_attention(const std::string& name) {
  try {
    return nn::Mechanism::parse(name);
  } catch (const Error& error) {
    throw UsageError(error.what());
  }
}

nlohmann::ordered_json to_json(const models::BertConfig& model) {
  const nn::Mechanism& mechanism = model.attention;
  const bool has_order = mechanism.kind == nn::Mechanism::Kind::ea_series ||
                         mechanism.kind == nn::Mechanism::Kind::ea_series_composed;
  nlohmann::ordered_json json;
  json["attention"] = mechanism.name();
  json["order"] = has_order ? nlohmann::ordered_json(mechanism.order) : nlohmann::ordered_json();
  json["device"] = detail::concatenate(model.options.device);
  json["dtype"] = name_of(model.options.dtype);
  json["causal"] = model.causal;
  json["layers"] = model.layers;
  json["hidden"] = model.hidden;
  json["heads"] = model.heads;
  json["intermediate"] = model.intermediate;
  json["vocabulary"] = model.vocabulary;
  return json;
}

}  // namespace elwise::tools
