// The gradient of linear attention, eq. 18 of arXiv 2501.05730.

#include "ops/linear_attention_kernels.h"

#include <algorithm>
#include <vector>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/linear_attention_backward.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "ops/cpu/linear_attention-inl.h"
#include "ops/cpu/linear_attention_direct-inl.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE {
namespace linear_attention {
namespace {

template <class S>
HWY_INLINE Compute<S> dot(const S* a, const S* b, int64_t count) {
  const Tag<Compute<S>> d;
  auto sum = hn::Zero(d);
  for_each_vector(d, 0, count, [&](int64_t c, int64_t n) HWY_ATTR {
    sum = hn::MulAdd(load_lanes(d, a + c, n), load_lanes(d, b + c, n), sum);
  });
  return ReduceSum(d, sum);
}

/// to [width] += scale * from.
template <class S, class T>
HWY_INLINE void add_scaled(const S* from, T scale, int64_t width, T* to) {
  const Tag<T> d;
  for_each_vector(d, 0, width, [&](int64_t c, int64_t n) HWY_ATTR {
    store_lanes(d, hn::MulAdd(load_lanes(d, from + c, n), hn::Set(d, scale), load_lanes(d, to + c, n)),
                to + c, n);
  });
}

/// The first pass goes down the sequence: dq, from S and z as in forward. The second goes up: dk and dv, from
/// A and B. A row of a with b behind it meets a row of v with a 1 behind it.
template <class S>
class Backward {
  using T = Compute<S>;

 public:
  explicit Backward(const LinearAttentionBackward& args)
      : args_(args),
        spans_(args),
        states_(linear_attention_states(args.batch, args.length, args.heads, args.causal)) {}

  void run() const {
    const int64_t pairs = args_.batch * args_.heads;
    parallel_tasks(pairs * spans_.count, [&](int64_t task) HWY_ATTR {
      query_gradients({args_, task / spans_.count}, task % spans_.count);
    });
    accumulate_states(args_, static_cast<T*>(args_.gradient_states), Pairs::from);
    parallel_tasks(pairs * spans_.count, [&](int64_t task) HWY_ATTR {
      key_gradients({args_, task / spans_.count}, task % spans_.count);
    });
    parallel_tasks(pairs, [&](int64_t pair) HWY_ATTR { direct_gradients({args_, pair}); });
  }

 private:
  using HeadOf = Head<S, LinearAttentionBackward>;

  /// Rows (a_i, b_i), 0 for queries that are answered directly.
  void load_output_gradients(const HeadOf& head, const Chunk& chunk, Matrix<T> to) const {
    const Tag<T> d;
    const int64_t width = args_.head;
    const Matrix<const S> dys = head.in(args_.dy), ys = head.in(args_.y);
    const T* denominators = head.per_query(static_cast<const T*>(args_.denominator));
    for (int64_t i = 0; i < chunk.count; ++i) {
      const int64_t row = chunk.begin + i;
      const T denominator = denominators[row];
      prefetch_row(dys.row(row + chunk.next), width);
      prefetch_row(ys.row(row + chunk.next), width);
      if (denominator == 0) {
        std::fill_n(to.row(i), to.step, T(0));
        continue;
      }
      const auto scale = hn::Set(d, 1 / denominator);
      for_each_vector(d, 0, width, [&](int64_t c, int64_t n) HWY_ATTR {
        hn::Store(hn::Mul(load_lanes(d, dys.row(row) + c, n), scale), d, to.row(i) + c);
      });
      to.row(i)[width] = -dot(dys.row(row), ys.row(row), width) / denominator;
    }
  }

  void query_gradients(const HeadOf& head, int64_t span) const {
    const int64_t width = args_.head, step = step_of<T>(width);
    const int64_t kept = args_.causal ? span - 1 : span;  // the state that this span's queries sum up to
    const auto [gradients, gradient_columns, queries, keys, values, value_columns, pairs, result, state,
                sums] = thread_matrices<T>({{kChunk, step},
                                            {width + 1, kChunk},
                                            {kChunk, step},
                                            {kChunk, step},
                                            {kChunk, step},
                                            {width + 1, kChunk},
                                            {kChunk, kChunk},
                                            {kChunk, step},
                                            {width + 1, step},
                                            {width + 1, step}});
    load_transposed_state(head, args_.causal ? span - 1 : states_ - 1, state);
    if (kept >= 0) clear_state(width, sums);
    for (int64_t row = spans_.begin(span); row < spans_.end(span); row += kChunk) {
      const Chunk chunk{row, std::min(kChunk, spans_.end(span) - row)};
      const int64_t count = chunk.count;
      load_output_gradients(head, chunk, gradients);
      transpose(gradients, count, width + 1, gradient_columns);
      load_query_features(head, chunk, queries);
      multiply(gradient_columns, state, count, width, width + 1, result, false);
      if (args_.causal) {
        load_key_features(head, chunk, keys);
        load_values(head, chunk, values);
        transpose(values, count, width + 1, value_columns);
        multiply_pairs<Pairs::up_to>(value_columns, gradient_columns, count, width + 1, pairs);
        add_pairs<Pairs::up_to>(pairs, keys, count, width, result);
        multiply(values, keys, width + 1, width, count, state, true);
      }
      store_feature_gradients(queries, result, chunk, head.out(args_.dq));
      if (kept >= 0) multiply(gradients, queries, width + 1, width, count, sums, true);
    }
    if (kept >= 0) store_state(sums, width, head.state(static_cast<T*>(args_.gradient_states), kept));
  }

  void key_gradients(const HeadOf& head, int64_t span) const {
    const int64_t width = args_.head, step = step_of<T>(width), panels = (width + kChunk - 1) / kChunk;
    const auto [gradients, gradient_columns, queries, query_columns, keys, key_columns, values, value_columns,
                pairs, key_result, value_result, sums, transposed_sums] =
        thread_matrices<T>({{kChunk, step},
                            {width + 1, kChunk},
                            {kChunk, step},
                            {width, kChunk},
                            {kChunk, step},
                            {width, kChunk},
                            {kChunk, step},
                            {width + 1, kChunk},
                            {kChunk, kChunk},
                            {kChunk, step},
                            {kChunk, step},
                            {width + 1, step},
                            {panels * width, kChunk}});
    const int64_t kept = args_.causal ? span : 0;
    if (kept < states_) {
      load_state<T>(head.state(static_cast<T*>(args_.gradient_states), kept), width, sums);
    } else {
      clear_state(width, sums);
    }
    const int64_t begin = spans_.begin(span), chunks = (spans_.end(span) - begin + kChunk - 1) / kChunk;
    for (int64_t index = chunks - 1; index >= 0; --index) {
      const int64_t row = begin + index * kChunk;
      const Chunk chunk{row, std::min(kChunk, spans_.end(span) - row), -kChunk};
      const int64_t count = chunk.count;
      load_key_features(head, chunk, keys);
      transpose(keys, count, width, key_columns);
      load_values(head, chunk, values);
      transpose(values, count, width + 1, value_columns);
      if (args_.causal || index == chunks - 1) {
        pack_panels<kChunk>(Operand<T>{sums.data, sums.step, 1}, width, width, transposed_sums.data);
      }
      multiply(value_columns, sums, count, width, width + 1, key_result, false);
      for (int64_t panel = 0; panel < panels; ++panel) {
        const Matrix<T> of_panel{transposed_sums.row(panel * width), kChunk};
        multiply(key_columns, of_panel, count, std::min(kChunk, width - panel * kChunk), width,
                 {value_result.data + panel * kChunk, step}, false);
      }
      if (args_.causal) {
        load_output_gradients(head, chunk, gradients);
        transpose(gradients, count, width + 1, gradient_columns);
        load_query_features(head, chunk, queries);
        transpose(queries, count, width, query_columns);
        multiply_pairs<Pairs::from>(gradient_columns, value_columns, count, width + 1, pairs);
        add_pairs<Pairs::from>(pairs, queries, count, width, key_result);
        multiply_pairs<Pairs::from>(query_columns, key_columns, count, width, pairs);
        add_pairs<Pairs::from>(pairs, gradients, count, width, value_result);
        multiply(gradients, queries, width + 1, width, count, sums, true);
      }
      store_feature_gradients(keys, key_result, chunk, head.out(args_.dk));
      clear_hidden(head, chunk, value_result);
      store_rows(value_result, chunk, head.out(args_.dv));
    }
  }

  /// S^T with z as one more row, from what forward kept; zeros before the first state.
  void load_transposed_state(const HeadOf& head, int64_t index, Matrix<T> to) const {
    const int64_t width = args_.head;
    if (index < 0) return clear_state(width, to);
    const T* from = head.state(static_cast<const T*>(args_.states), index);
    for (int64_t e = 0; e < width; ++e) {
      for (int64_t c = 0; c < width; ++c) to.row(e)[c] = from[c * width + e];
    }
    std::copy_n(from + width * width, width, to.row(width));
  }

  void store_rows(Matrix<T> from, const Chunk& chunk, Matrix<S> to) const {
    const Tag<T> d;
    for (int64_t i = 0; i < chunk.count; ++i) {
      for_each_vector(d, 0, args_.head, [&](int64_t c, int64_t n) HWY_ATTR {
        store_lanes(d, hn::Load(d, from.row(i) + c), to.row(chunk.begin + i) + c, n);
      });
    }
  }

  /// Gradients of x from those of phi(x), which are multiplied by phi'(x) = min(phi(x), 1). Features of
  /// hidden keys are 0, and so are their gradients.
  void store_feature_gradients(Matrix<T> features, Matrix<T> gradients, const Chunk& chunk,
                               Matrix<S> to) const {
    const Tag<T> d;
    const auto one = hn::Set(d, T(1));
    for (int64_t i = 0; i < chunk.count; ++i) {
      for_each_vector(d, 0, args_.head, [&](int64_t c, int64_t n) HWY_ATTR {
        const auto slope = hn::Min(hn::Load(d, features.row(i) + c), one);
        store_lanes(d, hn::Mul(hn::Load(d, gradients.row(i) + c), slope), to.row(chunk.begin + i) + c, n);
      });
    }
  }

  /// Adds the part of the queries that forward answered directly; of dk and dv, once it is whole.
  void direct_gradients(const HeadOf& head) const {
    const Tag<T> d;
    const int64_t width = args_.head, length = args_.length;
    const auto [scratch] = thread_matrices<T>({{DirectQuery<T>::kRows + 1, step_of<T>(args_.head)}});
    const T* denominators = head.per_query(static_cast<const T*>(args_.denominator));
    if (std::find(denominators, denominators + length, T(0)) == denominators + length) return;
    std::vector<T> sums(static_cast<size_t>(2 * length * width));
    const Matrix<T> dks{sums.data(), width}, dvs{dks.row(length), width};
    for (int64_t row = 0; row < length; ++row) {
      if (denominators[row] == 0) direct_gradient(head, row, scratch, dks, dvs);
    }
    const auto add_rows = [&](Matrix<T> from, Matrix<S> to) HWY_ATTR {
      for (int64_t row = 0; row < length; ++row) {
        S* const target = to.row(row);
        for_each_vector(d, 0, width, [&](int64_t c, int64_t n) HWY_ATTR {
          store_lanes(d, hn::Add(load_lanes(d, target + c, n), load_lanes(d, from.row(row) + c, n)),
                      target + c, n);
        });
      }
    };
    add_rows(dks, head.out(args_.dk));
    add_rows(dvs, head.out(args_.dv));
  }

  /// Adds the part of the query in row `row` to dks and dvs, and writes its dq.
  void direct_gradient(const HeadOf& head, int64_t row, Matrix<T> scratch, Matrix<T> dks,
                       Matrix<T> dvs) const {
    const Tag<T> d;
    const int64_t width = args_.head;
    const DirectQuery<T> query(head, row, scratch);
    const Matrix<const S> k = head.in(args_.k), v = head.in(args_.v);
    const S *dy = head.in(args_.dy).row(row), *y = head.in(args_.y).row(row);
    T* feature_sums = scratch.row(DirectQuery<T>::kRows);  // sum_j e_j (1 + k_j+) exp(k_j- - r)
    std::fill_n(feature_sums, scratch.step, T(0));
    T denominator = 0;
    query.for_each_key(head, [&](int64_t key) HWY_ATTR { denominator += query.weight(k.row(key)); });
    query.for_each_key(head, [&](int64_t key) HWY_ATTR {
      const S* of_key = k.row(key);
      T* dk = dks.row(key);
      add_scaled(dy, query.weight(of_key) / denominator, width, dvs.row(key));
      const auto e = hn::Set(d, (dot(dy, v.row(key), width) - dot(dy, y, width)) / denominator);
      for_each_vector(d, 0, width, [&](int64_t c, int64_t n) HWY_ATTR {
        const auto x = load_lanes(d, of_key + c, n), scaled = hn::Mul(e, query.key_slope(c, x));
        store_lanes(d, hn::MulAdd(query.factor(c), scaled, load_lanes(d, dk + c, n)), dk + c, n);
        const auto sum = hn::Load(d, feature_sums + c);
        hn::Store(hn::Add(sum, hn::MulAdd(hn::Max(hn::Zero(d), x), scaled, scaled)), d, feature_sums + c);
      });
    });
    if (query.sees_none()) return;
    S* dq = head.out(args_.dq).row(row);
    for_each_vector(d, 0, width, [&](int64_t c, int64_t n) HWY_ATTR {
      store_lanes(d, hn::Mul(query.slope(c), hn::Load(d, feature_sums + c)), dq + c, n);
    });
  }

  const LinearAttentionBackward& args_;
  Spans spans_;
  int64_t states_;
};

}  // namespace
}  // namespace linear_attention

void linear_attention_backward_simd(const LinearAttentionBackward& args) {
  dispatch_f32_f64_bf16(args.dtype, "linear_attention_backward",
                        [&]<class S>() { linear_attention::Backward<S>(args).run(); });
}

}  // namespace elwise::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace elwise::cpu {

HWY_EXPORT(linear_attention_backward_simd);

void linear_attention_backward(const LinearAttentionBackward& args) {
  HWY_DYNAMIC_DISPATCH(linear_attention_backward_simd)(args);
}

}  // namespace elwise::cpu
#endif
