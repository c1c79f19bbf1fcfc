#include "tools/experiments/saved_run.h"

#include "core/safetensors.h"
#include "nn/checkpoint.h"
#include "ops/view.h"

namespace elwise::tools {
namespace {

using nlohmann::ordered_json;

constexpr const char* kIndexFile = "checkpoint.json";  // of nn/checkpoint.h
constexpr const char* kFinishedFile = "finished.safetensors";
constexpr const char* kRunPrefix = "run-";
constexpr const char* kStateKey = "run";  // of a file's metadata

/// Calls visit(name, field) for every field.
template <class State, class Visitor>
void for_each_field(State& state, const Visitor& visit) {
  visit("settings", state.settings);
  visit("epochs", state.epochs);
  visit("best_epoch", state.best_epoch);
  visit("best_score", state.best_score);
  visit("best_tie_break", state.best_tie_break);
  visit("waited", state.waited);
  visit("seconds", state.seconds);
  visit("lines", state.lines);
  visit("finished", state.finished);
}

void write(const std::filesystem::path& path, const RunState& state, const Parameters& best) {
  ordered_json json;
  for_each_field(state, [&](const char* name, const auto& field) { json[name] = field; });
  save_safetensors(path, best, {{kStateKey, json.dump()}});
}

std::string text_of(const ordered_json* value) {
  return value == nullptr ? "nothing" : value->dump();
}

/// Whether a run with the saved settings has come where one with the wanted ones would have: it has when only
/// the last epoch moves away, as long as the learning rate does not depend on it.
bool allows_more_epochs(const ordered_json& saved, const ordered_json& wanted) {
  return saved.value("schedule", "") == "constant" && saved.value("warmup", 1.0) == 0 &&
         wanted.at("max_epochs") > saved.at("max_epochs");
}

RunState read(const std::filesystem::path& path, Parameters* best) {
  std::map<std::string, std::string> metadata;
  Parameters parameters = load_safetensors(path, &metadata);
  RunState state;
  try {
    const auto json = ordered_json::parse(metadata[kStateKey]);
    for_each_field(state, [&](const char* name, auto& field) { json.at(name).get_to(field); });
  } catch (const ordered_json::exception& problem) {
    fail("resume: ", path.string(), " is damaged: ", problem.what());
  }
  if (best != nullptr) *best = std::move(parameters);
  return state;
}

RunState read_checked(const std::filesystem::path& path, const ordered_json& settings, Parameters* best) {
  RunState state = read(path, best);
  check_settings(path, state.settings, settings);
  return state;
}

}  // namespace

void check_settings(const std::filesystem::path& path, const ordered_json& saved,
                    const ordered_json& wanted) {
  ordered_json names = saved;
  names.update(wanted);
  for (const auto& [name, ignored] : names.items()) {
    const ordered_json* before = saved.contains(name) ? &saved.at(name) : nullptr;
    const ordered_json* now = wanted.contains(name) ? &wanted.at(name) : nullptr;
    if (name == "max_epochs" && before != nullptr && allows_more_epochs(saved, wanted)) continue;
    ELWISE_CHECK(before != nullptr && now != nullptr && *before == *now, "resume: ", path.string(),
                 " is of a run with ", name, " ", text_of(before), ", the options give ", text_of(now));
  }
}

Parameters copy_parameters(const nn::Module& module) {
  Parameters result;
  for (const auto& [name, parameter] : module.named_parameters()) {
    result.emplace(name, clone(on_host(parameter.detach())));
  }
  return result;
}

std::filesystem::path SavedRun::run_file(int64_t step) const {
  return folder_ / (kRunPrefix + std::to_string(step) + ".safetensors");
}

bool SavedRun::exists() const {
  return !folder_.empty() &&
         (std::filesystem::exists(folder_ / kIndexFile) || std::filesystem::exists(folder_ / kFinishedFile));
}

void SavedRun::save(const RunState& state, const Parameters& best, const nn::Module& model,
                    const nn::Optimizer& optimizer) const {
  if (folder_.empty()) return;
  std::error_code error;
  std::filesystem::create_directories(folder_, error);
  ELWISE_CHECK(!error, "checkpoint: cannot create ", folder_.string(), ": ", error.message());
  // checkpoint.json, which save_checkpoint renames into place last, says which step counts, and so which run
  // file does.
  const std::filesystem::path current = run_file(optimizer.steps());
  write(current, state, best);
  nn::save_checkpoint(folder_, model, optimizer);
  for (const auto& entry : std::filesystem::directory_iterator(folder_, error)) {
    if (entry.path() != current && entry.path().filename().string().starts_with(kRunPrefix)) {
      std::filesystem::remove(entry.path(), error);  // one left behind is only disk space
    }
  }
}

void SavedRun::finish(const RunState& state, const Parameters& best) const {
  if (folder_.empty()) return;
  write(folder_ / kFinishedFile, state, best);
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder_, error)) {
    if (entry.path().filename() != kFinishedFile) std::filesystem::remove(entry.path(), error);
  }
}

std::pair<RunState, Parameters> SavedRun::load() const {
  const bool finished = std::filesystem::exists(folder_ / kFinishedFile);
  std::pair<RunState, Parameters> result;
  result.first =
      read(finished ? folder_ / kFinishedFile : run_file(nn::checkpoint_step(folder_)), &result.second);
  return result;
}

std::optional<RunState> SavedRun::finished(const ordered_json& settings) const {
  if (folder_.empty() || !std::filesystem::exists(folder_ / kFinishedFile)) return std::nullopt;
  return read_checked(folder_ / kFinishedFile, settings, nullptr);
}

std::optional<RunState> SavedRun::restore(const ordered_json& settings, Parameters& best,
                                          const nn::Module& model, nn::Optimizer& optimizer) const {
  if (!exists()) return std::nullopt;
  // The settings come first: those of another model would be told by the shapes of its parameters.
  const RunState state = read_checked(run_file(nn::checkpoint_step(folder_)), settings, &best);
  nn::load_checkpoint(folder_, model, optimizer);
  return state;
}

}  // namespace elwise::tools
