#include "cuda/ea.cuh"

// The references r_i of full element-wise attention (ops/ea_kernels.h). As a rule a query finds a near key
// among the first few, so that this costs little beside the sums over all pairs.

namespace elwise::cuda::ea {
namespace {

constexpr int kStep = 8;  // keys between two looks whether all queries are near one

/// The closest key on either side of a query. An exact search by side, not by rounded distance, so that no
/// exponent is positive.
template <class C>
struct Neighbours {
  C below = -INFINITY, above = INFINITY;

  __device__ __forceinline__ void add(C query, C key) {
    if (key <= query) below = max(below, key);
    if (key >= query) above = min(above, key);
  }
  __device__ __forceinline__ bool near(C query) const {
    return query - below <= C(kEaNear) || above - query <= C(kEaNear);
  }
  __device__ __forceinline__ C nearest(C query) const {
    return query - below <= above - query ? below : above;
  }
};

template <class T>
__global__ void __launch_bounds__(kBlock, sizeof(T) == 8 ? 1 : kResident)
    ea_references_kernel(References args) {
  using C = Compute<T>;
  const Place<T, References> place(args, First::last_rows);
  if (!place.owns(0)) return;
  C query[kOwn<T>];
  Neighbours<C> neighbours[kOwn<T>];
#pragma unroll
  for (int i = 0; i < kOwn<T>; ++i) query[i] = place.load(args.q, i);

  const bool* mask = args.key_mask == nullptr ? nullptr : args.key_mask + place.entry;
  const T* keys = static_cast<const T*>(args.k) + place.at(0, place.channel);
  const int end = args.causal ? min(place.row + kOwn<T>, place.length) : place.length;
  bool all_near = false;
  for (int begin = 0; begin < end && !all_near; begin += kStep) {
#pragma unroll
    for (int j = 0; j < kStep; ++j) {
      const int row = begin + j;
      if (row >= end || (mask != nullptr && !mask[row])) continue;
      const auto key = static_cast<C>(keys[row * args.channels]);
#pragma unroll
      for (int i = 0; i < kOwn<T>; ++i) {
        if (!args.causal || row <= place.row + i) neighbours[i].add(query[i], key);
      }
    }
    all_near = true;
#pragma unroll
    for (int i = 0; i < kOwn<T>; ++i) all_near &= neighbours[i].near(query[i]) || !place.owns(i);
  }
#pragma unroll
  for (int i = 0; i < kOwn<T>; ++i) {
    const bool near = neighbours[i].near(query[i]);
    place.store(args.r, i, near ? query[i] : neighbours[i].nearest(query[i]));
  }
}

}  // namespace

void find_references(const References& args) {
  dispatch_floating(args.dtype, "ea_references",
                    [&]<class T>() { launch<ea_references_kernel<T>>(launch_shape<T>(args), args); });
}

}  // namespace elwise::cuda::ea
