#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/tensor.h"

namespace elwise::tools {

/// Synthetic tasks that ask for something seen earlier in the sequence. Token 0 is special in each of them.
/// - mqar: multi-query associative recall (Zoology, arXiv 2312.04927), as that paper's program draws it:
/// first
///   `pairs` keys, each followed by its value, all different; then, in every second place at most, each key
///   once more, whose target is its value. Everything else is filler (0). The gaps follow a power law, so
///   that most queries come soon.
/// - copy: selective copying (Mamba, arXiv 2312.00752): `pairs` tokens scattered among noise (0); the
/// sequence
///   ends with as many markers (vocabulary - 1), whose targets are those tokens in their order.
/// - induction: induction heads (Mamba, section 4.1.2): random tokens, one of which is special (0); the last
///   token is special again, and its target what followed the first one. `pairs` must be 1.
enum class RecallTask : uint8_t { mqar, copy, induction };

/// The task called "mqar", "copy" or "induction". Throws Error that lists them for any other name.
RecallTask parse_recall_task(const std::string& name);
std::string name_of(RecallTask task);

struct RecallConfig {
  RecallTask task = RecallTask::mqar;
  int64_t length = 64;  // of a sequence, with its queries
  int64_t pairs = 4;    // answers in a sequence
  int64_t vocabulary = 64;
  /// mqar: a query comes g places of two after the pairs with a weight of g^(power - 1), g = 1, 2, ..; 1
  /// makes all places equally likely.
  double power = 0.01;
};

/// Throws Error unless the sequence has room for the pairs and the vocabulary for their tokens.
void check(const RecallConfig& config);

/// The number of tokens that an answer may be: who guesses among them is right once in so many.
int64_t possible_answers(const RecallConfig& config);

/// Which examples a stream may hold. No sequence is in two splits, whatever the seeds: a hash of its tokens
/// says to which it belongs, six eighths of all to training and one each to the others.
enum class RecallSplit : uint8_t { training, validation, test };

struct RecallExample {
  std::vector<int64_t> tokens;   // [length]
  std::vector<int64_t> targets;  // [length]: the answer where one is due, models::kNoTarget elsewhere
};

/// Example `index` of the endless stream of a seed and a split: a function of its arguments alone, with the
/// same bits everywhere. Throws Error as check(), and for a task so small that no example is in the split.
RecallExample recall_example(const RecallConfig& config, RecallSplit split, uint64_t seed, int64_t index);

/// Examples first .. first + count of such a stream.
struct RecallBatch {
  Tensor tokens;   // i64 [count, length]
  Tensor targets;  // i64 [count, length]
};
RecallBatch recall_batch(const RecallConfig& config, RecallSplit split, uint64_t seed, int64_t first,
                         int64_t count, Device device = kCpu);

}  // namespace elwise::tools
