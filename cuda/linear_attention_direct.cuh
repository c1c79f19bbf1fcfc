#pragma once

#include "cuda/linear_attention.cuh"
#include "cuda/reduce.cuh"

// Linear attention of a single query, key by key: for the queries whose features meet only features so small
// that their products vanish. Every term is taken relative to the largest, so the denominator is 1 or more.
// Rare: a block answers one query after the other.

namespace elwise::cuda::linear_attention {

/// With x- = min(x, 0), x+ = max(x, 0): phi(x) = (1 + x+) exp(x-). r_c = max_j k_jc- over the keys that the
/// query sees and m = max_c (q_c- + r_c) give the terms (1 + q_c+) exp(q_c- + r_c - m) (1 + k_jc+)
/// exp(k_jc- - r_c), exponents not positive and 0 for one of them. The block's threads call all of it
/// together.
template <class T>
class DirectQuery {
 public:
  using C = Compute<T>;

  /// scratch: r and slope, [head] each.
  __device__ DirectQuery(const Head<T>& head, int row, C* scratch)
      : head_(head),
        problem_(head.problem),
        end_(problem_.causal ? row + 1 : problem_.length),
        q_(problem_.q + head.at(row)),
        largest_(scratch),
        slope_(scratch + problem_.head) {
    C most = -C(INFINITY);
    for (int c = static_cast<int>(threadIdx.x); c < problem_.head; c += kBlock) {
      C largest = -C(INFINITY);
      for (int key = 0; key < end_; ++key) {
        if (sees(key)) largest = Larger()(negative(element(problem_.k, key, c)), largest);
      }
      largest_[c] = largest;
      most = Larger()(negative(query(c)) + largest, most);
    }
    most = reduce_block(most, -C(INFINITY), Larger());
    sees_none_ = most == -C(INFINITY);
    for (int c = static_cast<int>(threadIdx.x); c < problem_.head; c += kBlock) {
      const C of_query = negative(query(c)), largest = largest_[c], sum = of_query + largest;
      // What rounding took off the sum (Knuth's TwoSum): it counts where both are large.
      const C part = sum - of_query, error = (of_query - (sum - part)) + (largest - part);
      slope_[c] = sees_none_ ? C(0) : exp((sum - most) + error);
    }
    __syncthreads();
  }

  __device__ __forceinline__ bool sees_none() const { return sees_none_; }
  __device__ __forceinline__ int end() const { return end_; }
  __device__ __forceinline__ bool sees(int key) const { return head_.is_visible(key); }
  /// Of a tensor like q.
  __device__ __forceinline__ C element(const T* tensor, int row, int c) const {
    return static_cast<C>(tensor[head_.at(row, c)]);
  }
  __device__ __forceinline__ C query(int c) const { return static_cast<C>(q_[c]); }

  /// exp(q- + r - m), and (1 + q+) times that.
  __device__ __forceinline__ C slope(int c) const { return slope_[c]; }
  __device__ __forceinline__ C factor(int c) const { return (C(1) + positive(query(c))) * slope_[c]; }
  /// exp(k- - r), and (1 + k+) times that.
  __device__ __forceinline__ C key_slope(int key, int c) const {
    return exp(negative(element(problem_.k, key, c)) - largest_[c]);
  }
  __device__ __forceinline__ C key_factor(int key, int c) const {
    return (C(1) + positive(element(problem_.k, key, c))) * key_slope(key, c);
  }

  /// The sum of all terms of a key, by a warp.
  __device__ __forceinline__ C weight(int key) const {
    C sum = 0;
    for (int c = static_cast<int>(threadIdx.x) % 32; c < problem_.head; c += 32) {
      sum = fma(factor(c), key_factor(key, c), sum);
    }
    return reduce_warp(sum);
  }
  /// weights[i] = weight(first + i) of the keys that the query sees, 0 for others, by the block.
  __device__ __forceinline__ void find_weights(int first, C (&weights)[kBlock]) const {
    for (int i = static_cast<int>(threadIdx.x) / 32; i < kBlock; i += kBlock / 32) {
      const C found = first + i < end_ && sees(first + i) ? weight(first + i) : C(0);
      if (threadIdx.x % 32 == 0) weights[i] = found;
    }
    __syncthreads();
  }

 private:
  /// NaN for NaN.
  static __device__ __forceinline__ C negative(C x) { return x > C(0) ? C(0) : x; }
  static __device__ __forceinline__ C positive(C x) { return x > C(0) ? x : C(0); }

  const Head<T>& head_;
  const Problem<T>& problem_;
  int end_;
  const T* q_;
  C* largest_;
  C* slope_;
  bool sees_none_;
};

/// Calls body(row) for the rows in [begin, end) that are answered directly. All threads of the block call it.
template <class T, class Body>
__device__ __forceinline__ void for_each_direct(const Head<T>& head, int begin, int end, const Body& body) {
  for (int first = begin; first < end; first += kBlock) {
    const int own = first + static_cast<int>(threadIdx.x);
    if (!__syncthreads_or(own < end && head.denominators[own] == 0)) continue;
    for (int row = first; row < min(first + kBlock, end); ++row) {
      if (head.denominators[row] == 0) body(row);
    }
  }
}

}  // namespace elwise::cuda::linear_attention
