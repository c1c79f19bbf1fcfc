// The gradient of linear attention, eq. 18 of arXiv 2501.05730.

#include <algorithm>
#include <bit>

#include "cuda/linear_attention_answer.cuh"
#include "cuda/linear_attention_direct.cuh"

namespace elwise::cuda {
namespace linear_attention {
namespace {

/// b_i = -(dy_i . y_i) / denominator_i, 0 for queries that are answered directly. `lanes` neighbouring
/// threads, a power of two, share a row of a head; N elements are read at a time.
template <class T, int N>
__global__ void __launch_bounds__(kBlock, 1)
    row_products_kernel(Problem<T> problem, const T* y, Compute<T>* b, int64_t rows, int lanes) {
  using C = Compute<T>;
  const int64_t row = grid_thread() / lanes;  // of [batch, length, heads]
  const int head = problem.head;
  C sum = 0;
  for (int c = static_cast<int>(threadIdx.x) % lanes * N; c < head && row < rows; c += lanes * N) {
    const auto of_dy = load_compute<N>(problem.dy + row * head + c),
               of_y = load_compute<N>(y + row * head + c);
#pragma unroll
    for (int i = 0; i < N; ++i) sum = fma(of_dy.at[i], of_y.at[i], sum);
  }
  for (int offset = lanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(kAllLanes, sum, offset);
  if (row >= rows || threadIdx.x % lanes != 0) return;
  const int64_t position = row / problem.heads, batch = position / problem.length;
  const int64_t at =
      (batch * problem.heads + row % problem.heads) * problem.length + position % problem.length;
  const C denominator = problem.denominator[at];
  b[at] = denominator == C(0) ? C(0) : -sum / denominator;
}

template <class T>
void find_row_products(const Problem<T>& problem, const T* y, Compute<T>* b, int64_t rows) {
  const auto run = [&]<int N>() {
    const auto pieces = static_cast<uint64_t>(ceil_div(problem.head, N));
    const int64_t lanes = static_cast<int64_t>(std::bit_ceil(std::min<uint64_t>(pieces, 32)));
    launch<row_products_kernel<T, N>>(
        {.grid = static_cast<unsigned>(ceil_div(rows * lanes, kBlock)), .block = kBlock}, problem, y, b, rows,
        lanes);
  };
  problem.aligned ? run.template operator()<kVectorWidth<T>>() : run.template operator()<1>();
}

/// Gradients of the inputs, [batch, length, heads * head].
template <class T>
struct Gradients {
  T* dq;
  T* dk;
  T* dv;
};

/// Adds the part of the queries that were answered directly. A block per pair of batch entry and head, whose
/// first state is its scratch; a thread per channel adds to the keys in turn.
template <class T>
__global__ void __launch_bounds__(kBlock, 1)
    direct_gradients_kernel(Problem<T> problem, const T* y, Gradients<T> gradients) {
  using C = Compute<T>;
  __shared__ C weights[kBlock], slopes[kBlock];  // slopes: dy . (v - y)
  const Head<T> head(problem, static_cast<int>(blockIdx.x));
  C* const scratch = problem.sums + int64_t{blockIdx.x} * problem.chunks() * problem.state_size();
  const int thread = static_cast<int>(threadIdx.x), width = problem.head;
  for_each_direct(head, 0, problem.length, [&](int row) {
    const DirectQuery<T> query(head, row, scratch);
    if (query.sees_none()) return;
    const auto times_dy = [&](const T* tensor, int other) {  // by a warp
      C sum = 0;
      for (int c = thread % 32; c < width; c += 32) {
        sum = fma(query.element(problem.dy, row, c), query.element(tensor, other, c), sum);
      }
      return reduce_warp(sum);
    };
    const C of_y = times_dy(y, row);
    C denominator = 0;
    for (int key = thread / 32; key < query.end(); key += kBlock / 32) {
      if (query.sees(key)) denominator += query.weight(key);
    }
    denominator = reduce_block(thread % 32 == 0 ? denominator : C(0), C(0));
    for (int first = 0; first < width; first += kBlock) {
      const int c = first + thread;
      C features = 0;  // sum_j slope_j (1 + k_j+) exp(k_j- - r)
      for (int keys = 0; keys < query.end(); keys += kBlock) {
        const int count = min(kBlock, query.end() - keys);
        query.find_weights(keys, weights);
        for (int i = thread / 32; i < count; i += kBlock / 32) {
          const C slope = query.sees(keys + i) ? (times_dy(problem.v, keys + i) - of_y) / denominator : C(0);
          if (thread % 32 == 0) slopes[i] = slope;
        }
        __syncthreads();
        for (int i = 0; i < count && c < width; ++i) {
          if (!query.sees(keys + i)) continue;
          const int64_t at = head.at(keys + i, c);
          const C change = weights[i] / denominator * query.element(problem.dy, row, c);
          const C scaled = slopes[i] * query.key_slope(keys + i, c);
          gradients.dv[at] = T(static_cast<C>(gradients.dv[at]) + change);
          gradients.dk[at] = T(fma(query.factor(c), scaled, static_cast<C>(gradients.dk[at])));
          features = fma(slopes[i], query.key_factor(keys + i, c), features);
        }
        __syncthreads();
      }
      if (c < width) {
        gradients.dq[head.at(row, c)] = T(query.slope(c) * features);
      }
    }
    __syncthreads();
  });
}

/// The states that `answer` starts from: of all chunks, which total [pairs, total_step] has, or of those that
/// meet each.
template <Operand kFeatures, Operand kValues, class T>
States<Compute<T>> find_states(const Problem<T>& problem, int64_t pairs, bool backward, Compute<T>* total,
                               int64_t total_step) {
  using C = Compute<T>;
  const int64_t size = int64_t{problem.head + 1} * problem.head;
  sum_chunks<kFeatures, kValues>(problem, pairs);
  combine_chunks(Combination<C>{.sums = problem.sums,
                                .pairs = pairs,
                                .chunks = problem.chunks(),
                                .size = size,
                                .causal = problem.causal,
                                .backward = backward,
                                .total = problem.causal ? nullptr : total,
                                .total_step = total_step});
  return problem.causal ? States<C>{problem.sums, problem.chunks() * size, size, false}
                        : States<C>{total, total_step, 0, true};
}

template <class T>
void backward(const LinearAttentionBackward& args) {
  using C = Compute<T>;
  const int64_t pairs = args.batch * args.heads;
  const auto* y = static_cast<const T*>(args.y);
  Problem<T> problem = problem_of<T>(
      args, args.causal, is_aligned(args.q, args.k, args.v, args.y, args.dy, args.dq, args.dk, args.dv));
  problem.dy = static_cast<const T*>(args.dy);
  problem.denominator = static_cast<const C*>(args.denominator);
  problem.b = static_cast<const C*>(args.b);
  const Gradients<T> gradients{static_cast<T*>(args.dq), static_cast<T*>(args.dk), static_cast<T*>(args.dv)};
  const int64_t size = (args.head + 1) * args.head;
  const int64_t kept = linear_attention_states(args.batch, args.length, args.heads, args.causal);
  find_row_products(problem, y, static_cast<C*>(args.b), args.batch * args.length * args.heads);
  const States<C> of_keys =
      args.causal ? find_states<Operand::key, Operand::value>(problem, pairs, false, nullptr, 0)
                  : States<C>{static_cast<const C*>(args.states) + (kept - 1) * size, kept * size, 0, true};
  answer_rows<Answer::query_gradients>(problem, pairs, of_keys, gradients.dq);
  const States<C> of_queries = find_states<Operand::query, Operand::gradient>(
      problem, pairs, true, static_cast<C*>(args.gradient_states), kept * size);
  answer_rows<Answer::key_gradients>(problem, pairs, of_queries, gradients.dk);
  answer_rows<Answer::value_gradients>(problem, pairs, of_queries, gradients.dv);
  launch<direct_gradients_kernel<T>>({.grid = static_cast<unsigned>(pairs), .block = kBlock}, problem, y,
                                     gradients);
}

}  // namespace
}  // namespace linear_attention

void linear_attention_backward(const LinearAttentionBackward& args) {
  if (args.batch * args.length * args.heads * args.head == 0) return;
  dispatch_floating(args.dtype, "linear_attention_backward",
                    [&]<class T>() { linear_attention::backward<T>(args); });
}

}  // namespace elwise::cuda
