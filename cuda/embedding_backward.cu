#include <algorithm>

#include "cuda/index_order.h"
#include "cuda/input_fault.cuh"
#include "cuda/launch.cuh"
#include "cuda/loop_nest.cuh"
#include "cuda/vector.cuh"
#include "ops/embedding_kernels.h"

// index_select and gather backward without atomics, however often an index repeats: the elements are sorted
// by destination and cut in runs of kIndexRun. A run adds those of a destination that it has for itself to
// dx, and keeps partial sums of the first and the last where other runs have some too; a second launch adds
// these in order.

namespace elwise::cuda {
namespace {

constexpr int kBatch = 8;  // rows of dy that a thread reads before it adds them
constexpr int kJoinColumns = 32, kJoinSlices = 8;

/// What is added: row `element` of dy [outer, count, inner] to row `destination` of dx [outer, size, inner].
struct SortedRows {
  DType dtype;
  const void* dy;
  void* dx;
  void* partials;  // [2, runs, outer, inner]: the sums of a run's first destination, and of its last
  IndexOrder order;
  int64_t outer;
  int64_t size;
  int64_t count;
  int64_t inner;
  int64_t runs;
};

/// A thread's columns [i, i + kWidth) of outer index o.
template <class T, int kWidth>
class Columns {
 public:
  using Piece = Vector<Compute<T>, kWidth>;

  /// Piece `number` of outer * inner / kWidth.
  __device__ __forceinline__ Columns(const SortedRows& rows, int64_t number, const Divisor& inner)
      : rows_(rows) {
    const Divisor::Result place = inner.divide(number);
    dy_ =
        static_cast<const T*>(rows.dy) + place.quotient * rows.count * rows.inner + place.remainder * kWidth;
    dx_ = static_cast<T*>(rows.dx) + place.quotient * rows.size * rows.inner + place.remainder * kWidth;
    partials_ = static_cast<Compute<T>*>(rows.partials) + number * kWidth;
  }

  __device__ __forceinline__ Piece load_dy(uint32_t element) const {
    return load_compute<kWidth>(dy_ + element * rows_.inner);
  }
  __device__ __forceinline__ void add_to_dx(uint32_t destination, const Piece& sum) const {
    T* to = dx_ + destination * rows_.inner;
    Piece result = load_compute<kWidth>(to);
    add(result, sum);
    store_compute<kWidth>(to, result);
  }
  /// The partial sum of a run's first destination, or of its last.
  __device__ __forceinline__ Compute<T>* partial(int64_t run, bool first) const {
    return partials_ + (first ? run : rows_.runs + run) * rows_.outer * rows_.inner;
  }

  static __device__ __forceinline__ void add(Piece& sum, const Piece& term) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sum.at[i] += term.at[i];
  }

 private:
  const SortedRows& rows_;
  const T* dy_;
  T* dx_;
  Compute<T>* partials_;
};

/// Whether the sorted elements at `a` and `b` exist and have one destination.
__device__ __forceinline__ bool same_destination(const SortedRows& rows, int64_t a, int64_t b) {
  return a >= 0 && b < rows.count && rows.order.destination[a] == rows.order.destination[b];
}

/// A thread adds a run of one piece of columns.
template <class T, int kWidth>
__global__ void add_runs_kernel(SortedRows rows, int64_t items, Divisor pieces, Divisor inner) {
  using Piece = typename Columns<T, kWidth>::Piece;
  const int64_t item = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (item >= items) return;
  const Divisor::Result place = pieces.divide(item);
  const int64_t run = place.quotient, begin = run * kIndexRun, end = min(begin + kIndexRun, rows.count);
  const Columns<T, kWidth> columns(rows, place.remainder, inner);
  const bool continues = same_destination(rows, begin - 1, begin);
  const bool continued = same_destination(rows, end - 1, end);
  Piece sum{};
  int64_t first = begin;  // of the destination at hand
  for (int64_t batch = begin; batch < end; batch += kBatch) {
    uint32_t destination[kBatch + 1];
    Piece terms[kBatch];
#pragma unroll
    for (int i = 0; i <= kBatch; ++i) {
      const int64_t at = batch + i;
      destination[i] = at < end ? rows.order.destination[at] : UINT32_MAX;
      if (i < kBatch && at < end) terms[i] = columns.load_dy(rows.order.element[at]);
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int64_t at = batch + i;
      if (at >= end) continue;
      columns.add(sum, terms[i]);
      if (destination[i] == destination[i + 1]) continue;
      const bool is_first = first == begin, is_last = at + 1 == end;
      if ((is_first && continues) || (is_last && continued)) {
        store(columns.partial(run, is_first), sum);
      } else if (destination[i] < rows.size) {
        columns.add_to_dx(destination[i], sum);
      }
      sum = Piece{};
      first = at + 1;
    }
  }
}

/// The partial sums of the destination that begins in a run and goes on in others.
struct SplitDestination {
  uint32_t destination;
  bool is_first;     // of its run
  int64_t last_run;  // that it reaches

  /// False where no destination begins in `run` and goes on.
  __device__ __forceinline__ bool find(const SortedRows& rows, int64_t run) {
    const int64_t begin = run * kIndexRun, end = begin + kIndexRun;
    if (!same_destination(rows, end - 1, end)) return false;
    destination = rows.order.destination[end - 1];
    is_first = rows.order.destination[begin] == destination;
    if ((is_first && same_destination(rows, begin - 1, begin)) || destination >= rows.size) return false;
    int64_t inside = end, outside = rows.count;
    while (inside + 1 < outside) {
      const int64_t middle = inside + (outside - inside) / 2;
      (rows.order.destination[middle] == destination ? inside : outside) = middle;
    }
    last_run = inside / kIndexRun;
    return true;
  }
};

/// Block x adds the partial sums of the destination that begins in run x: each row of its threads every
/// kJoinSlices-th, and the first row what these give.
template <class T, int kWidth>
__global__ void join_runs_kernel(SortedRows rows, int64_t pieces, Divisor inner) {
  using Piece = typename Columns<T, kWidth>::Piece;
  __shared__ Piece sums[kJoinSlices][kJoinColumns];
  const int64_t run = blockIdx.x;
  SplitDestination split;
  if (!split.find(rows, run)) return;
  const auto slice = static_cast<int>(threadIdx.y), lane = static_cast<int>(threadIdx.x);
  for (int64_t tile = blockIdx.y; tile * kJoinColumns < pieces; tile += gridDim.y) {
    const int64_t piece = tile * kJoinColumns + lane;
    const Columns<T, kWidth> columns(rows, min(piece, pieces - 1), inner);
    Piece sum{};
    if (slice == 0) sum = load<kWidth>(columns.partial(run, split.is_first));
#pragma unroll 4
    for (int64_t other = run + 1 + slice; other <= split.last_run; other += kJoinSlices) {
      columns.add(sum, load<kWidth>(columns.partial(other, true)));
    }
    sums[slice][lane] = sum;
    __syncthreads();
    if (slice == 0 && piece < pieces) {
      for (int y = 1; y < kJoinSlices; ++y) columns.add(sum, sums[y][lane]);
      columns.add_to_dx(split.destination, sum);
    }
    __syncthreads();
  }
}

void add_rows(SortedRows rows) {
  constexpr int64_t kMostTiles = 65535;
  dispatch_floating(rows.dtype, "index_select_backward", [&]<class T>() {
    const auto with_width = [&]<int kWidth>() {
      const int64_t pieces = rows.outer * rows.inner / kWidth, items = rows.runs * pieces;
      const Divisor inner(rows.inner / kWidth);
      launch<add_runs_kernel<T, kWidth>>(
          {.grid = static_cast<unsigned>(ceil_div(items, kThreads)), .block = kThreads}, rows, items,
          Divisor(pieces), inner);
      const auto tiles = static_cast<unsigned>(std::min(ceil_div(pieces, kJoinColumns), kMostTiles));
      launch<join_runs_kernel<T, kWidth>>(
          {.grid = {static_cast<unsigned>(rows.runs - 1), tiles}, .block = {kJoinColumns, kJoinSlices}}, rows,
          pieces, inner);
    };
    if (is_aligned(rows.dy, rows.dx, rows.partials) && rows.inner % kVectorWidth<T> == 0) {
      with_width.template operator()<kVectorWidth<T>>();
    } else {
      with_width.template operator()<1>();
    }
  });
}

/// Down one column (o, i) of dy and index, in the order of j.
template <class T>
__global__ void walk_columns_kernel(GatherBackward args, Divisor inner, CheckedIndex checked) {
  const int64_t columns = args.outer * args.inner, stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t column = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; column < columns; column += stride) {
    const Divisor::Result place = inner.divide(column);
    const int64_t first = place.quotient * args.count * args.inner + place.remainder;
    T* dx = static_cast<T*>(args.dx) + place.quotient * args.size * args.inner + place.remainder;
    for (int64_t j = 0; j < args.count; ++j) {
      const int64_t from = first + j * args.inner, to = args.index[from];
      if (!checked.is_valid(to, from)) continue;
      const auto term = static_cast<Compute<T>>(static_cast<const T*>(args.dy)[from]);
      dx[to * args.inner] = T(static_cast<Compute<T>>(dx[to * args.inner]) + term);
    }
  }
}

}  // namespace

void index_select_backward(const IndexSelectBackward& args) {
  if (args.outer * args.count * args.inner == 0) return;
  const Destinations index{.kernel = IndexKernel::index_select,
                           .index = args.index,
                           .outer = 1,
                           .size = args.size,
                           .count = args.count,
                           .inner = 1};
  add_rows({.dtype = args.dtype,
            .dy = args.dy,
            .dx = args.dx,
            .partials = args.partials,
            .order = sort_index(index, args.order),
            .outer = args.outer,
            .size = args.size,
            .count = args.count,
            .inner = args.inner,
            .runs = index_runs(args.count)});
}

void gather_backward(const GatherBackward& args) {
  const int64_t columns = args.outer * args.inner;
  if (columns * args.count == 0) return;
  if (!gather_backward_sorts(args.dtype, args.outer, args.count, args.inner)) {
    dispatch_floating(args.dtype, "gather_backward", [&]<class T>() {
      launch<walk_columns_kernel<T>>({.grid = grid_for(columns), .block = kThreads}, args,
                                     Divisor(args.inner),
                                     CheckedIndex{input_fault(), IndexKernel::gather, args.size});
    });
    return;
  }
  const Destinations index{.kernel = IndexKernel::gather,
                           .index = args.index,
                           .outer = args.outer,
                           .size = args.size,
                           .count = args.count,
                           .inner = args.inner};
  add_rows({.dtype = args.dtype,
            .dy = args.dy,
            .dx = args.dx,
            .partials = args.partials,
            .order = sort_index(index, args.order),
            .outer = 1,
            .size = index.destinations(),
            .count = index.elements(),
            .inner = 1,
            .runs = index_runs(index.elements())});
}

}  // namespace elwise::cuda
