#pragma once

#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

#include "ops/attention_options.h"
#include "tests/support/naive_ea.h"
#include "tests/support/op_test.h"

// What the tests of every attention mechanism share: masks, sizes, and the properties that all of them have.

namespace elwise::testing {

/// The sizes and the mask of a call, for the naive references of all mechanisms.
using AttentionShape = naive::EaShape;

/// A mechanism with its own parameters bound.
struct Attention {
  std::string name;
  std::function<Tensor(const Tensor& q, const Tensor& k, const Tensor& v, const AttentionOptions&)> run;
  std::function<Values(const AttentionShape&, const Values& q, const Values& k, const Values& v)> naive;
};

/// Which keys a mask shows: all (there is no mask then), all but the last or the first ones, each with a
/// probability of one half, or none.
enum class Visible : uint8_t { all, right_padded, left_padded, random, none };
inline constexpr Visible kVisible[] = {Visible::all, Visible::right_padded, Visible::left_padded,
                                       Visible::random, Visible::none};

/// The mask [batch, length], undefined for Visible::all. Padding differs from one batch entry to the next.
Tensor key_mask(Visible visible, int64_t batch, int64_t length);

/// Lengths around a vector, a block of 32 rows and a chunk of 128, with channels around a vector.
inline const Shape kAttentionShapes[] = {{2, 1, 33},   {2, 3, 5},    {2, 31, 1},   {2, 32, 17}, {1, 33, 15},
                                         {1, 127, 15}, {1, 128, 16}, {2, 129, 17}, {2, 257, 1}, {1, 257, 3}};

/// The mechanism as an op of q, k, v in [-magnitude, magnitude) and the mask, to be given to check_op.
OpTest attention_test(const Attention& attention, const Shape& shape, bool causal, Visible visible,
                      double magnitude);

/// An output and the gradients of sum(y * dy).
struct AttentionResult {
  Values y, dq, dk, dv;
};

/// Checks the output as check_close does; and the gradients, by the magnitude that their terms have: that of
/// dy v (q - k). Where these cancel, as they do far away, nothing smaller can be told.
void check_result(const AttentionResult& actual, const AttentionResult& expected, const Tensor& q,
                  const Tensor& k, Tolerance output, Tolerance gradient, const std::string& what);

/// Runs the mechanism both ways in `dtype` on the test device. q, k, v, dy: f64 on the CPU, as is the mask.
AttentionResult run_attention(const Attention& attention, const Tensor& q, const Tensor& k, const Tensor& v,
                              const Tensor& dy, DType dtype, const AttentionOptions& options);

/// Checks, causal and not, that the mechanism gives the same bits in f32 with each of the numbers of threads,
/// on random operands of this shape. On the CPU only.
void check_same_bits_with_threads(const Attention& attention, const Shape& shape,
                                  std::initializer_list<int> thread_counts);

/// The sizes of q with a mask as the naive references want it.
AttentionShape attention_shape(const Tensor& q, const AttentionOptions& options);

/// x rounded to `dtype`, still in f64.
Tensor rounded_to(const Tensor& x, DType dtype);

/// Checks, in f64, f32 and bf16, causal and not, for all masks (in bf16 for a random one): later tokens and
/// other batch entries (even NaN) do not matter, nor do hidden keys; a query that sees no key has output 0,
/// and it and a key that nothing sees have gradients of 0; outputs do not change without gradients; empty
/// tensors pass.
void check_attention_properties(const Attention& attention);

/// Checks that each y lies between the least and the largest v that its query sees, but for `slack` times
/// the largest |v|.
void check_within_values(const AttentionShape& shape, const Values& y, const Values& v, double slack,
                         const std::string& what);

/// Checks on q and k of magnitudes up to 1e4, in f64 and f32, causal and not, for all masks: each y as
/// check_within_values does, and that the gradients are finite. shape: of q.
void check_large_scores(const Attention& attention, const Shape& shape);

/// Checks, in f64, f32 and bf16, causal and not, that a NaN in one element of q, k or v
/// makes NaN, forward, of just the outputs of its head whose query sees it; one of v of just its channel. A
/// mechanism that works channel by channel has heads of 1; `head` divides kNanChannels.
inline constexpr int64_t kNanChannels = 35;
/// `weighs_hidden`: hidden values are multiplied by weights of 0, so that a NaN in v is looked at where all
/// see it.
void check_nan_stays_in_head(const Attention& attention, int64_t head = 1, bool weighs_hidden = false);

}  // namespace elwise::testing
