// The recurrence of linear attention (eq. 18 of arXiv 2501.05730; Katharopoulos et al., arXiv 2006.16236),
// head by head: one row in one pass over the state, several as in the forward pass, from a state that is
// carried on.

#include "cuda/linear_attention_answer.cuh"
#include "cuda/reduce.cuh"
#include "ops/attention_step_kernels.h"

namespace elwise::cuda {
namespace linear_attention {
namespace {

/// Threads beside each other along a row of the state; others take other rows.
inline constexpr int kLanes = 16;
inline constexpr int kRowsAtOnce = kBlock / kLanes;

/// One row. A block per pair of batch entry and head; N elements of the state are read at a time. args.q, k,
/// v and y: [pairs, head].
template <class T, int N>
__global__ void __launch_bounds__(kBlock, 1) step_kernel(LinearAttentionStep args) {
  using C = Compute<T>;
  __shared__ C query_features[kBlock], key_features[kBlock];
  __shared__ Vector<C, N> parts[kBlock];
  const int head = static_cast<int>(args.head), thread = static_cast<int>(threadIdx.x);
  const int lane = thread % kLanes, part = thread / kLanes;
  const int64_t pair = blockIdx.x, first = pair * head;
  const bool visible = args.key_mask == nullptr || args.key_mask[pair / args.heads];
  const T *q = static_cast<const T*>(args.q) + first, *k = static_cast<const T*>(args.k) + first,
          *v = static_cast<const T*>(args.v) + first;
  C *const s = static_cast<C*>(args.s) + first * head, *const z = static_cast<C*>(args.z) + first;

  // A common factor of the query's features cancels: the largest is 1 where all are small.
  C shift = -C(INFINITY);
  for (int c = thread; c < head; c += kBlock) shift = Larger()(static_cast<C>(q[c]), shift);
  shift = reduce_block(shift, -C(INFINITY), Larger());
  if (shift > C(0)) shift = 0;
  const auto query_feature = [&](int c) {
    const C x = static_cast<C>(q[c]);
    return x > C(0) ? x + C(1) : exp(x - shift);
  };
  const auto key_feature = [&](int c) { return visible ? feature(static_cast<C>(k[c])) : C(0); };
  C denominator = 0;
  for (int c = thread; c < head; c += kBlock) {
    const C sum = z[c] + key_feature(c);
    z[c] = sum;
    denominator = fma(sum, query_feature(c), denominator);
  }
  denominator = reduce_block(denominator, C(0));
  const C scale = denominator == C(0) ? C(0) : 1 / denominator;

  for (int col = 0; col < head; col += kLanes * N) {
    const int own = col + lane * N;
    Vector<C, N> value{}, answer{};
#pragma unroll
    for (int i = 0; i < N; ++i) value.at[i] = visible && own + i < head ? static_cast<C>(v[own + i]) : C(0);
    for (int rows = 0; rows < head; rows += kBlock) {
      __syncthreads();  // the last ones have been read
      query_features[thread] = rows + thread < head ? query_feature(rows + thread) : C(0);
      key_features[thread] = rows + thread < head ? key_feature(rows + thread) : C(0);
      __syncthreads();
      if (own >= head) continue;
#pragma unroll 4
      for (int c = part; c < min(kBlock, head - rows); c += kRowsAtOnce) {
        C* const at = s + int64_t{rows + c} * head + own;
        auto sum = load<N>(at);
#pragma unroll
        for (int i = 0; i < N; ++i) {
          sum.at[i] = fma(key_features[c], value.at[i], sum.at[i]);
          answer.at[i] = fma(query_features[c], sum.at[i], answer.at[i]);
        }
        store(at, sum);
      }
    }
    parts[thread] = answer;
    __syncthreads();
    if (part != 0 || own >= head) continue;
    for (int other = 1; other < kRowsAtOnce; ++other) {
#pragma unroll
      for (int i = 0; i < N; ++i) answer.at[i] += parts[other * kLanes + lane].at[i];
    }
    T* const y = static_cast<T*>(args.y) + first + own;
#pragma unroll
    for (int i = 0; i < N; ++i) y[i] = T(answer.at[i] * scale);
  }
}

template <class T>
void step(const LinearAttentionStep& args) {
  constexpr int kWidth = kVectorWidth<Compute<T>>;
  const LaunchShape shape{.grid = static_cast<unsigned>(args.batch * args.heads), .block = kBlock};
  if (args.head % kWidth == 0 && is_aligned(args.s)) {
    launch<step_kernel<T, kWidth>>(shape, args);
  } else {
    launch<step_kernel<T, 1>>(shape, args);
  }
}

template <class T>
void prefill(const LinearAttentionStep& args) {
  using C = Compute<T>;
  const int64_t pairs = args.batch * args.heads, size = (args.head + 1) * args.head;
  auto* sums = static_cast<C*>(args.sums);
  const Problem<T> problem = problem_of<T>(args, /*causal=*/true, is_aligned(args.q, args.k, args.v, args.y));
  sum_chunks<Operand::key, Operand::value>(problem, pairs);
  combine_chunks(Combination<C>{.sums = sums,
                                .pairs = pairs,
                                .chunks = problem.chunks(),
                                .size = size,
                                .causal = true,
                                .backward = false,
                                .total = nullptr,
                                .total_step = 0,
                                .s = static_cast<C*>(args.s),
                                .z = static_cast<C*>(args.z),
                                .head = args.head});
  answer_rows<Answer::scaled_outputs>(problem, pairs, {sums, problem.chunks() * size, size, true},
                                      static_cast<T*>(args.y));
}

}  // namespace
}  // namespace linear_attention

void linear_attention_step(const LinearAttentionStep& args) {
  if (args.batch * args.length * args.heads * args.head == 0) return;
  dispatch_floating(args.dtype, "linear_attention_step", [&]<class T>() {
    args.length == 1 ? linear_attention::step<T>(args) : linear_attention::prefill<T>(args);
  });
}

}  // namespace elwise::cuda
