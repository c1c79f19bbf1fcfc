#pragma once

#include "cuda/launch.cuh"
#include "cuda/vector.cuh"
#include "ops/aft_kernels.h"

// What the kernels of the Attention Free Transformer around its matrix products share; ops/aft_kernels.h has
// the mathematics. A thread takes 16 bytes of neighbouring channels of one row. Direct answers are rare: a
// thread goes through the keys by itself.

namespace elwise::cuda::aft {

/// Where a thread stands: N channels from `channel` of a row of a batch entry.
template <int N>
struct Place {
  int64_t batches, length, channels, batch, row, channel;
  bool exists;

  __device__ __forceinline__ Place(int64_t batches, int64_t length, int64_t channels, int64_t item)
      : batches(batches), length(length), channels(channels) {
    const int64_t pieces = (channels + N - 1) / N;
    channel = item % pieces * N;
    batch = item / pieces % batches;
    row = item / pieces / batches;
    exists = row < length;
  }

  /// In a tensor [batch, length, channels].
  __device__ __forceinline__ int64_t element() const { return (batch * length + row) * channels + channel; }
  /// In a tensor [length, batch, 2, channels]: the first of the two; the second is `channels` further on.
  __device__ __forceinline__ int64_t pair() const { return (row * batches + batch) * 2 * channels + channel; }

  template <class T>
  __device__ __forceinline__ Vector<Compute<T>, N> read(const T* from, bool aligned) const {
    T stored[N];
    load_elements(from, 0, channels - channel, aligned, stored);
    Vector<Compute<T>, N> result;
#pragma unroll
    for (int i = 0; i < N; ++i) result.at[i] = static_cast<Compute<T>>(stored[i]);
    return result;
  }
  template <class T>
  __device__ __forceinline__ void write(T* to, const Vector<Compute<T>, N>& value, bool aligned) const {
    T stored[N];
#pragma unroll
    for (int i = 0; i < N; ++i) stored[i] = T(value.at[i]);
    store_elements(to, 0, channels - channel, aligned, stored);
  }
};

template <int N>
__device__ __forceinline__ Place<N> place_of(int64_t batches, int64_t length, int64_t channels) {
  return {batches, length, channels, grid_thread()};
}

template <int N>
LaunchShape shape_of(int64_t batches, int64_t length, int64_t channels) {
  return {.grid = static_cast<unsigned>(ceil_div(batches * length * ceil_div(channels, N), kThreads)),
          .block = kThreads};
}

template <class C>
__device__ __forceinline__ C sigmoid_of(C x) {
  return C(1) / (C(1) + exp(-x));
}

/// What the weights of a query are relative to: the largest exponent, and the sum of what they are then.
template <class C>
struct Scale {
  C largest, total;
};

/// One query over the keys that it sees, in one channel: its weights are exp(w_ij + k_j).
template <class T>
class DirectQuery {
 public:
  using C = Compute<T>;

  __device__ DirectQuery(const AftDirect& direct, int64_t batch, int64_t length, int64_t channels,
                         int64_t row, int64_t channel)
      : k_(static_cast<const T*>(direct.k) + batch * length * channels + channel),
        v_(static_cast<const T*>(direct.v) + batch * length * channels + channel),
        bias_(static_cast<const T*>(direct.position_bias) + row * direct.positions),
        mask_(direct.key_mask != nullptr ? direct.key_mask + batch * length : nullptr),
        stride_(channels),
        end_(direct.causal ? row + 1 : length) {}

  __device__ int64_t end() const { return end_; }
  __device__ bool sees(int64_t key) const { return mask_ == nullptr || mask_[key]; }
  __device__ C value(int64_t key) const { return static_cast<C>(v_[key * stride_]); }
  /// Calls body(key) for each key that the query sees.
  template <class Body>
  __device__ void for_each_visible(const Body& body) const {
    for (int64_t key = 0; key < end_; ++key) {
      if (sees(key)) body(key);
    }
  }

  /// The total is 0 where it sees none.
  __device__ Scale<C> scale() const {
    Scale<C> scale{-C(INFINITY), 0};
    for_each_visible([&](int64_t key) {
      const C sum = exponent(key).sum;
      scale.largest = sum > scale.largest ? sum : scale.largest;
    });
    for_each_visible([&](int64_t key) { scale.total += weight(key, scale.largest); });
    return scale;
  }
  __device__ C probability(int64_t key, const Scale<C>& scale) const {
    return weight(key, scale.largest) / scale.total;
  }

 private:
  /// A sum and what rounding took off it.
  struct Exponent {
    C sum, error;
  };

  /// w_ij + k_j by Knuth's TwoSum: of large addends that cancel, or nearly equal sums, every digit counts.
  __device__ Exponent exponent(int64_t key) const {
    const C k = static_cast<C>(k_[key * stride_]), w = static_cast<C>(bias_[key]);
    const C sum = k + w, part = sum - k;
    const C error = (k - (sum - part)) + (w - part);
    return {sum, error == error ? error : C(0)};  // NaN where an addend is infinite
  }
  __device__ C weight(int64_t key, C largest) const {
    const auto [sum, error] = exponent(key);
    return exp((sum - largest) + error);
  }

  const T *k_, *v_, *bias_;
  const bool* mask_;
  int64_t stride_, end_;
};

inline unsigned blocks_for(int64_t items) {
  return static_cast<unsigned>(ceil_div(items, kThreads));
}

/// True where rows of every tensor allow the threads' vectors.
template <class T, class... Pointers>
bool rows_aligned(int64_t channels, const Pointers*... pointers) {
  return channels % kVectorWidth<T> == 0 && is_aligned(pointers...);
}

}  // namespace elwise::cuda::aft
