// The forward pass of linear attention, eq. 18 of arXiv 2501.05730.

#include "cuda/linear_attention_answer.cuh"
#include "cuda/linear_attention_direct.cuh"

namespace elwise::cuda {
namespace linear_attention {
namespace {

/// y of the queries that are answered directly. A block per pair of batch entry and head, and chunk; the
/// chunk's state, no longer needed, is its scratch.
template <class T>
__global__ void __launch_bounds__(kBlock, 1) direct_answers_kernel(Problem<T> problem, T* y) {
  using C = Compute<T>;
  __shared__ C weights[kBlock];
  const int chunks = problem.chunks();
  const Head<T> head(problem, static_cast<int>(blockIdx.x / chunks));
  const int begin = static_cast<int>(blockIdx.x % chunks) * problem.chunk;
  C* const scratch = problem.sums + blockIdx.x * problem.state_size();
  for_each_direct(head, begin, min(begin + problem.chunk, problem.length), [&](int row) {
    const DirectQuery<T> query(head, row, scratch);
    for (int first = 0; first < problem.head; first += kBlock) {
      const int c = first + static_cast<int>(threadIdx.x);
      C sum = 0, denominator = 0;
      for (int keys = 0; keys < query.end() && !query.sees_none(); keys += kBlock) {
        query.find_weights(keys, weights);
        for (int i = 0; i < min(kBlock, query.end() - keys); ++i) {
          if (!query.sees(keys + i)) continue;
          denominator += weights[i];
          if (c < problem.head) sum = fma(weights[i], query.element(problem.v, keys + i, c), sum);
        }
        __syncthreads();
      }
      if (c < problem.head) {
        y[head.at(row, c)] = T(query.sees_none() ? C(0) : sum / denominator);
      }
    }
    __syncthreads();
  });
}

template <class T>
void forward(const LinearAttentionForward& args) {
  using C = Compute<T>;
  const int64_t pairs = args.batch * args.heads;
  auto *denominators = static_cast<C*>(args.denominator), *sums = static_cast<C*>(args.sums);
  Problem<T> problem = problem_of<T>(args, args.causal, is_aligned(args.q, args.k, args.v, args.y));
  problem.denominator = denominators;
  const int64_t size = (args.head + 1) * args.head;
  const int64_t kept = linear_attention_states(args.batch, args.length, args.heads, args.causal);
  C* const total = args.causal ? nullptr : static_cast<C*>(args.states) + (kept - 1) * size;
  sum_chunks<Operand::key, Operand::value>(problem, pairs);
  combine_chunks(Combination<C>{.sums = sums,
                                .pairs = pairs,
                                .chunks = problem.chunks(),
                                .size = size,
                                .causal = args.causal,
                                .backward = false,
                                .total = total,
                                .total_step = kept * size});
  const States<C> states = args.causal ? States<C>{sums, problem.chunks() * size, size, false}
                                       : States<C>{total, kept * size, 0, true};
  answer_rows<Answer::outputs>(problem, pairs, states, static_cast<T*>(args.y), denominators);
  launch<direct_answers_kernel<T>>({.grid = static_cast<unsigned>(pairs * problem.chunks()), .block = kBlock},
                                   problem, static_cast<T*>(args.y));
}

}  // namespace
}  // namespace linear_attention

void linear_attention_forward(const LinearAttentionForward& args) {
  if (args.batch * args.length * args.heads * args.head == 0) return;
  dispatch_floating(args.dtype, "linear_attention_forward",
                    [&]<class T>() { linear_attention::forward<T>(args); });
}

}  // namespace elwise::cuda
