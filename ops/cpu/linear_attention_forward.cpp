// The forward pass of linear attention, eq. 18 of arXiv 2501.05730.

#include "ops/linear_attention_kernels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/linear_attention_forward.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "ops/cpu/linear_attention-inl.h"
#include "ops/cpu/linear_attention_direct-inl.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE {
namespace linear_attention {
namespace {

/// state += keys^T values, for features and values of `count` rows; z, in the last row, sums the features.
template <class T>
void add_keys(Matrix<T> keys, Matrix<T> values, int64_t count, int64_t width, Matrix<T> state) {
  multiply(keys, values, width, width, count, state, true);
  const Tag<T> d;
  T* z = state.row(width);
  for_each_vector(d, 0, width, [&](int64_t c, int64_t n) HWY_ATTR {
    auto sum = hn::Zero(d);
    for (int64_t i = 0; i < count; ++i) sum = hn::Add(sum, hn::Load(d, keys.row(i) + c));
    store_lanes(d, hn::Add(sum, hn::Load(d, z + c)), z + c, n);
  });
}

/// y of the query in row `row`, from its keys and values one by one.
template <class S, class T>
void answer_directly(const Head<S, LinearAttentionForward>& head, int64_t row, Matrix<T> scratch, S* y) {
  const Tag<T> d;
  const int64_t width = head.args.head;
  const DirectQuery<T> query(head, row, scratch);
  T* values = scratch.row(DirectQuery<T>::kRows);  // their weighted sum
  T sum = 0;
  std::fill_n(values, scratch.step, T(0));
  query.for_each_key(head, [&](int64_t key) HWY_ATTR {
    const T weight = query.weight(head.in(head.args.k).row(key));
    const S* v = head.in(head.args.v).row(key);
    for_each_vector(d, 0, width, [&](int64_t c, int64_t n) HWY_ATTR {
      hn::Store(hn::MulAdd(hn::Set(d, weight), load_lanes(d, v + c, n), hn::Load(d, values + c)), d,
                values + c);
    });
    sum += weight;
  });
  if (query.sees_none()) sum = 1;
  for_each_vector(d, 0, width, [&](int64_t c, int64_t n) HWY_ATTR {
    store_lanes(d, hn::Div(hn::Load(d, values + c), hn::Set(d, sum)), y + c, n);
  });
}

/// denominators[i] = z . query i, and the sum of column i of `pairs` unless that is null.
template <class T>
void find_denominators(Matrix<T> query_columns, const T* z, int64_t width, const Matrix<T>* pairs,
                       int64_t count, T* denominators) {
  const Tag<T> d;
  for (int64_t i = 0; i < count; i += kVectorLanes<T>) {
    auto sum = hn::Zero(d);
    for (int64_t c = 0; c < width; ++c) {
      sum = hn::MulAdd(hn::Set(d, z[c]), hn::Load(d, query_columns.row(c) + i), sum);
    }
    if (pairs != nullptr) {
      const int64_t end = std::min(count, i + kVectorLanes<T>);
      auto in_chunk = hn::Zero(d);
      for (int64_t j = 0; j < end; ++j) in_chunk = hn::Add(in_chunk, hn::Load(d, pairs->row(j) + i));
      sum = hn::Add(sum, in_chunk);
    }
    hn::Store(sum, d, denominators + i);
  }
}

template <class S>
class Forward {
  using T = Compute<S>;

 public:
  explicit Forward(const LinearAttentionForward& args)
      : args_(args), spans_(args), states_(static_cast<T*>(args.states)) {}

  void run() const {
    const int64_t pairs = args_.batch * args_.heads;
    const int64_t states = linear_attention_states(args_.batch, args_.length, args_.heads, args_.causal);
    parallel_tasks(pairs * states, [&](int64_t task) HWY_ATTR {
      sum_span({args_, task / states}, task % states);
    });
    accumulate_states(args_, states_, Pairs::up_to);
    parallel_tasks(pairs * spans_.count, [&](int64_t task) HWY_ATTR {
      answer_span({args_, task / spans_.count}, task % spans_.count);
    });
  }

 private:
  using HeadOf = Head<S, LinearAttentionForward>;

  void sum_span(const HeadOf& head, int64_t span) const {
    const int64_t width = args_.head, step = step_of<T>(width);
    const auto [keys, values, state] =
        thread_matrices<T>({{kChunk, step}, {kChunk, step}, {width + 1, step}});
    clear_state(width, state);
    for (int64_t row = spans_.begin(span); row < spans_.end(span); row += kChunk) {
      const Chunk chunk{row, std::min(kChunk, spans_.end(span) - row)};
      load_key_features(head, chunk, keys);
      load_values(head, chunk, values);
      add_keys(keys, values, chunk.count, width, state);
    }
    store_state(state, width, head.state(states_, span));
  }

  void answer_span(const HeadOf& head, int64_t span) const {
    const int64_t width = args_.head, step = step_of<T>(width);
    const auto [queries, query_columns, keys, key_columns, values, pairs, result, state, denominators,
                direct] = thread_matrices<T>({{kChunk, step},
                                              {width, kChunk},
                                              {kChunk, step},
                                              {width, kChunk},
                                              {kChunk, step},
                                              {kChunk, kChunk},
                                              {kChunk, step},
                                              {width + 1, step},
                                              {1, kChunk},
                                              {DirectQuery<T>::kRows + 1, step}});
    if (!args_.causal) {
      load_state<T>(head.state(states_, spans_.count - 1), width, state);
    } else if (span > 0) {
      load_state<T>(head.state(states_, span - 1), width, state);
    } else {
      clear_state(width, state);
    }
    for (int64_t row = spans_.begin(span); row < spans_.end(span); row += kChunk) {
      const Chunk chunk{row, std::min(kChunk, spans_.end(span) - row)};
      const int64_t count = chunk.count;
      bool finite = true;
      load_query_features(head, chunk, queries);
      transpose(queries, count, width, query_columns);
      multiply(query_columns, state, count, width, width, result, false);
      if (args_.causal) {
        load_key_features(head, chunk, keys);
        transpose(keys, count, width, key_columns);
        finite = load_values(head, chunk, values);
        multiply_pairs<Pairs::up_to>(key_columns, query_columns, count, width, pairs);
        add_pairs<Pairs::up_to>(pairs, values, count, width, result);
      }
      find_denominators(query_columns, state.row(width), width, args_.causal ? &pairs : nullptr, count,
                        denominators.data);
      store_answers(head, chunk, result, denominators.data, finite, direct);
      if (args_.causal) add_keys(keys, values, count, width, state);
    }
  }

  /// Divides the results of a chunk. Where a value of the chunk is not `finite`, it stands in results of
  /// queries that do not see it.
  void store_answers(const HeadOf& head, const Chunk& chunk, Matrix<T> result, const T* denominators,
                     bool finite, Matrix<T> scratch) const {
    const Tag<T> d;
    T* kept = head.per_query(static_cast<T*>(args_.denominator));
    for (int64_t i = 0; i < chunk.count; ++i) {
      const int64_t row = chunk.begin + i;
      S* y = head.out(args_.y).row(row);
      if (denominators[i] < T(kLinearAttentionLeast) || !finite) {
        kept[row] = 0;
        answer_directly(head, row, scratch, y);
        continue;
      }
      kept[row] = denominators[i];
      const auto scale = hn::Set(d, 1 / denominators[i]);
      for_each_vector(d, 0, args_.head, [&](int64_t c, int64_t n) HWY_ATTR {
        store_lanes(d, hn::Mul(hn::Load(d, result.row(i) + c), scale), y + c, n);
      });
    }
  }

  const LinearAttentionForward& args_;
  Spans spans_;
  T* states_;
};

}  // namespace
}  // namespace linear_attention

void linear_attention_forward_simd(const LinearAttentionForward& args) {
  dispatch_f32_f64_bf16(args.dtype, "linear_attention_forward",
                        [&]<class S>() { linear_attention::Forward<S>(args).run(); });
}

}  // namespace elwise::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace elwise::cpu {

HWY_EXPORT(linear_attention_forward_simd);

void linear_attention_forward(const LinearAttentionForward& args) {
  HWY_DYNAMIC_DISPATCH(linear_attention_forward_simd)(args);
}

}  // namespace elwise::cpu
#endif
