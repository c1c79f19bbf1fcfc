// The Attention Free Transformer's kernels of the forward pass; ops/aft_kernels.h has the mathematics.

#include "ops/aft_kernels.h"

#include <algorithm>
#include <atomic>
#include <numeric>
#include <vector>

#include "core/parallel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/aft_forward.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "core/simd-inl.h"
#include "ops/cpu/aft-inl.h"

HWY_BEFORE_NAMESPACE();
namespace elwise::cpu::HWY_NAMESPACE {
namespace aft {
namespace {

/// first[lane] = min(first[lane], row) for the lanes where `large` holds, on any thread.
template <class T>
HWY_NOINLINE void note_large(hn::Mask<Tag<T>> large, int64_t row, int64_t lanes, int64_t* first) {
  const Tag<T> d;
  HWY_ALIGN T flags[hn::MaxLanes(Tag<T>())];
  hn::Store(hn::IfThenElseZero(large, hn::Set(d, T(1))), d, flags);
  for (int64_t lane = 0; lane < lanes; ++lane) {
    if (flags[lane] == 0) continue;
    const std::atomic_ref<int64_t> least(first[lane]);
    int64_t before = least.load();
    while (row < before && !least.compare_exchange_weak(before, row)) {
    }
  }
}

template <class S, class T = Compute<S>>
void keys(const AftKeys& args) {
  const Tag<T> d;
  const auto limit = hn::Set(d, T(kAftLargestKey));
  if (args.first_large != nullptr) std::fill_n(args.first_large, args.batch * args.channels, args.length);
  for_each_row(args, [&](int64_t batch, int64_t row) HWY_ATTR {
    S* weighted = pair_of(static_cast<S*>(args.keys), args, batch, row);
    if (args.key_mask != nullptr && !args.key_mask[batch * args.length + row]) {
      std::fill_n(weighted, 2 * args.channels, S());
      return;
    }
    const S* k = row_of(static_cast<const S*>(args.k), args, batch, row);
    const S* v = row_of(static_cast<const S*>(args.v), args, batch, row);
    for_each_vector(d, 0, args.channels, [&](int64_t c, int64_t n) HWY_ATTR {
      const auto key = load_lanes(d, k + c, n);
      const auto large = hn::Gt(key, limit);
      const auto weight = hn::IfThenZeroElse(large, Exp(d, key));
      store_lanes(d, hn::Mul(weight, load_lanes(d, v + c, n)), weighted + c, n);
      store_lanes(d, weight, weighted + args.channels + c, n);
      if (args.first_large != nullptr && !hn::AllFalse(d, large)) {
        note_large<T>(large, row, n, args.first_large + batch * args.channels + c);
      }
    });
  });
}

template <class S>
class Outputs {
  using T = Compute<S>;

 public:
  explicit Outputs(const AftOutputs& args) : args_(args) {
    for (int64_t batch = 0; batch < args.batch; ++batch) {
      const int64_t* first = args.first_large + batch * args.channels;
      first_large_.push_back(std::accumulate(first, first + args.channels, args.length,
                                             [](int64_t a, int64_t b) { return std::min(a, b); }));
      const bool* mask = args.direct.key_mask;
      if (mask != nullptr) mask += batch * args.length;
      first_visible_.push_back(mask == nullptr ? 0 : std::find(mask, mask + args.length, true) - mask);
    }
  }

  void run() const {
    *args_.direct_answers = 0;
    for_each_row(args_, [&](int64_t batch, int64_t row) HWY_ATTR { answer(batch, row); });
  }

 private:
  /// Whether a query sees a key that is the first of its kind.
  bool sees(int64_t row, int64_t first) const {
    return first < (args_.direct.causal ? row + 1 : args_.length);
  }

  void answer(int64_t batch, int64_t row) const {
    const Tag<T> d;
    S* sums = pair_of(static_cast<S*>(args_.sums), args_, batch, row);
    S* z = sums + args_.channels;
    const S* q = row_of(static_cast<const S*>(args_.q), args_, batch, row);
    S* y = row_of(static_cast<S*>(args_.y), args_, batch, row);
    if (!sees(row, first_visible_[batch])) {
      std::fill_n(y, args_.channels, S());
      std::fill_n(sums, 2 * args_.channels, S());
      return;
    }
    const bool sees_large = sees(row, first_large_[batch]);
    for_each_vector(d, 0, args_.channels, [&](int64_t c, int64_t n) HWY_ATTR {
      const auto sum = load_lanes(d, sums + c, n), weight = load_lanes(d, z + c, n);
      auto answered = hn::And(hn::Ge(weight, hn::Set(d, T(kAftLeastSum))), hn::IsFinite(sum));
      if (sees_large) answered = hn::AndNot(large_lanes(batch, row, c, n), answered);
      answered = hn::Or(answered, hn::Not(hn::FirstN(d, static_cast<size_t>(n))));
      auto result = hn::Div(sum, weight);
      if (!hn::AllTrue(d, answered)) {
        result = hn::IfThenElse(answered, result, direct_answer(batch, row, c, n));
        store_lanes(d, hn::IfThenElseZero(answered, weight), z + c, n);
      }
      store_lanes(d, result, sums + c, n);
      store_lanes(d, hn::Mul(Sigmoid(d, load_lanes(d, q + c, n)), result), y + c, n);
    });
  }

  /// The channels in which the query sees a large key.
  HWY_NOINLINE hn::Mask<Tag<T>> large_lanes(int64_t batch, int64_t row, int64_t channel,
                                            int64_t lanes) const {
    const Tag<T> d;
    HWY_ALIGN T flags[hn::MaxLanes(Tag<T>())] = {};
    for (int64_t lane = 0; lane < lanes; ++lane) {
      flags[lane] = sees(row, args_.first_large[batch * args_.channels + channel + lane]) ? T(1) : T(0);
    }
    return hn::Ne(hn::Load(d, flags), hn::Zero(d));
  }

  HWY_NOINLINE Vec<T> direct_answer(int64_t batch, int64_t row, int64_t channel, int64_t lanes) const {
    std::atomic_ref<int64_t>(*args_.direct_answers).store(1);
    const DirectAnswer<S, AftOutputs> direct(args_, batch, row, channel, lanes);
    auto result = hn::Zero(Tag<T>());
    direct.for_each_key([&](int64_t key, Vec<T> probability)
                            HWY_ATTR { result = hn::MulAdd(probability, direct.value(key), result); });
    return result;
  }

  const AftOutputs& args_;
  std::vector<int64_t> first_large_, first_visible_;  // of each batch entry
};

}  // namespace
}  // namespace aft

void aft_keys_simd(const AftKeys& args) {
  dispatch_f32_f64_bf16(args.dtype, "aft_keys", [&]<class S>() { aft::keys<S>(args); });
}

void aft_outputs_simd(const AftOutputs& args) {
  dispatch_f32_f64_bf16(args.dtype, "aft_outputs", [&]<class S>() { aft::Outputs<S>(args).run(); });
}

}  // namespace elwise::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace elwise::cpu {

HWY_EXPORT(aft_keys_simd);
HWY_EXPORT(aft_outputs_simd);

void aft_keys(const AftKeys& args) {
  HWY_DYNAMIC_DISPATCH(aft_keys_simd)(args);
}

void aft_outputs(const AftOutputs& args) {
  HWY_DYNAMIC_DISPATCH(aft_outputs_simd)(args);
}

}  // namespace elwise::cpu
#endif
