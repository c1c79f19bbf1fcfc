#include "cuda/ea.cuh"

// The forward pass of full element-wise attention, eq. 2 of arXiv 2501.05730.

namespace elwise::cuda {
namespace ea {
namespace {

/// Numerator and denominator of the thread's queries.
template <class T>
struct OutputSums {
  using C = Compute<T>;

  C query[kOwn<T>], reference[kOwn<T>];
  C numerator[kOwn<T>] = {}, denominator[kOwn<T>] = {};
  C tile_numerator[kOwn<T>] = {}, tile_denominator[kOwn<T>] = {};

  template <bool kNear>
  __device__ __forceinline__ void add(int i, C key, C value) {
    const Pair<kNear, C> pair(query[i], reference[i], key);
    tile_numerator[i] += pair.weight * value;
    tile_denominator[i] += pair.weight;
  }
  __device__ __forceinline__ void end_tile() {
#pragma unroll
    for (int i = 0; i < kOwn<T>; ++i) {
      numerator[i] += tile_numerator[i];
      denominator[i] += tile_denominator[i];
      tile_numerator[i] = tile_denominator[i] = 0;
    }
  }
};

/// args.y holds the references before, y after.
template <class T, int N>
__global__ void __launch_bounds__(kBlock, sizeof(T) == 8 ? 1 : kResident) ea_forward_kernel(EaForward args) {
  using C = Compute<T>;
  const Place<T, EaForward> place(args, First::last_rows);
  OutputSums<T> sums;
  bool all_near = true;
#pragma unroll
  for (int i = 0; i < kOwn<T>; ++i) {
    sums.query[i] = place.load(args.q, i);
    sums.reference[i] = place.load(args.y, i);
    all_near &= sums.reference[i] == sums.query[i];
  }
  walk_keys<N>(place, all_near, sums);
#pragma unroll
  for (int i = 0; i < kOwn<T>; ++i) {
    const C denominator = sums.denominator[i];
    place.store(args.y, i, denominator == 0 ? 0 : sums.numerator[i] / denominator);
    place.template store<C>(args.denominator, i, denominator);
  }
}

}  // namespace
}  // namespace ea

void ea_forward(const EaForward& args) {
  ea::find_references(args, args.y);
  ea::dispatch_chunks(
      args.dtype, "ea_forward", args.channels,
      [&]<class T, int N>() { launch<ea::ea_forward_kernel<T, N>>(ea::launch_shape<T>(args), args); }, args.k,
      args.v);
}

}  // namespace elwise::cuda
