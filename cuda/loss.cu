#include "ops/loss_kernels.h"

#include <algorithm>

#include "cuda/input_fault.cuh"
#include "cuda/launch.cuh"
#include "cuda/ordered_sum.cuh"
#include "cuda/row.cuh"

// Cross-entropy reads a row of logits once each way, and is made for rows of 30522: its 16-byte pieces start
// before the row where that is not aligned, and what lies outside is left out. The pointwise losses stand
// below.

namespace elwise::cuda {
namespace {

constexpr int kBatch = 4;  // pieces that a thread reads before it works on them
constexpr int kRowThreads = 512;
constexpr int kMeanThreads = 1024;

/// A row of `size` elements in pieces of 16 bytes, numbered from that in which it starts.
template <class T>
struct AlignedPieces {
  static constexpr int kWidth = kVectorWidth<T>;
  int before, size;  // elements of the first piece that lie before the row

  __device__ __forceinline__ AlignedPieces(const T* row, int size)
      : before(static_cast<int>(reinterpret_cast<uintptr_t>(row) / sizeof(T) % kWidth)), size(size) {}

  __device__ __forceinline__ int column(int piece) const { return piece * kWidth - before; }
  __device__ __forceinline__ bool is_whole(int col) const { return col >= 0 && col + kWidth <= size; }

  /// The elements of columns [col, col + kWidth); `missing` for those outside the row.
  __device__ __forceinline__ Vector<Compute<T>, kWidth> load(const T* row, int col,
                                                             Compute<T> missing) const {
    if (is_whole(col)) return load_compute<kWidth>(row + col);
    Vector<Compute<T>, kWidth> piece;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const bool inside = col + i >= 0 && col + i < size;
      piece.at[i] = inside ? static_cast<Compute<T>>(row[col + i]) : missing;
    }
    return piece;
  }
  /// Writes those inside. `aligned`: the other row starts in its piece where this one does.
  __device__ __forceinline__ void store(T* row, int col, const Vector<Compute<T>, kWidth>& piece,
                                        bool aligned) const {
    if (aligned && is_whole(col)) return store_compute<kWidth>(row + col, piece);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      if (col + i >= 0 && col + i < size) row[col + i] = T(piece.at[i]);
    }
  }
};

/// Numbers x as their largest and the sum of exp(x - largest).
template <class Element>
struct ExponentialSum {
  Element largest = -Element(INFINITY), sum = 0;

  /// What is subtracted from numbers whose largest is `largest`: there may be none but -infinity.
  static __device__ __forceinline__ Element shift(Element largest) {
    return largest == -Element(INFINITY) ? Element(0) : largest;
  }
  template <int kCount>
  __device__ __forceinline__ void add(const Element (&x)[kCount]) {
    Element most = largest;
#pragma unroll
    for (int i = 0; i < kCount; ++i) most = fmax(most, x[i]);
    sum *= exp(largest - shift(most));
    largest = most;
#pragma unroll
    for (int i = 0; i < kCount; ++i) sum += exp(x[i] - shift(most));
  }
};

template <class T, class Team>
__global__ void __launch_bounds__(kRowThreads, 1)
    cross_entropy_forward_kernel(CrossEntropyForward args, CheckedIndex checked) {
  using Element = Compute<T>;
  const int64_t row = int64_t{blockIdx.x} * Team::teams() + Team::number();
  if (row >= args.rows) return;
  auto* logsumexp = static_cast<Element*>(args.logsumexp) + row;
  auto* row_loss = static_cast<Element*>(args.row_loss) + row;
  const int64_t target = args.target[row];
  if (target == args.ignore_index || !checked.is_valid(target, row)) {
    if (Team::rank() == 0) *logsumexp = *row_loss = 0;
    return;
  }
  const T* x = row_of<T>(args.logits, row, args.classes);
  const AlignedPieces<T> pieces(x, static_cast<int>(args.classes));
  ExponentialSum<Element> row_sum;
  for (int first = Team::rank(); pieces.column(first) < pieces.size; first += kBatch * Team::threads()) {
    Element logits[kBatch * pieces.kWidth];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const auto piece = pieces.load(x, pieces.column(first + b * Team::threads()), -Element(INFINITY));
#pragma unroll
      for (int i = 0; i < pieces.kWidth; ++i) logits[b * pieces.kWidth + i] = piece.at[i];
    }
    row_sum.add(logits);
  }
  const Element largest = reduce_team<Team>(row_sum.largest, -Element(INFINITY), LargerNumber{});
  const Element part = row_sum.sum * exp(row_sum.largest - ExponentialSum<Element>::shift(largest));
  const Element logarithm = log(reduce_team<Team>(part, Element(0)));
  if (Team::rank() != 0) return;
  *logsumexp = largest + logarithm;
  *row_loss = largest - static_cast<Element>(x[target]) + logarithm;
}

/// One block: the mean of row_loss over the rows that count.
template <class T>
__global__ void mean_loss_kernel(CrossEntropyForward args) {
  double sums[2] = {};  // of losses, and of rows
  for (int64_t row = threadIdx.x; row < args.rows; row += kMeanThreads) {
    if (args.target[row] == args.ignore_index) continue;
    sums[0] += static_cast<const Compute<T>*>(args.row_loss)[row];
    sums[1] += 1;
  }
  reduce_block(sums, 0.0);
  if (threadIdx.x != 0) return;
  *static_cast<Compute<T>*>(args.loss) = static_cast<Compute<T>>(sums[1] == 0 ? 0 : sums[0] / sums[1]);
}

/// One block: scale = dloss / rows that count.
template <class T>
__global__ void gradient_scale_kernel(CrossEntropyBackward args, CheckedIndex checked, Compute<T>* scale) {
  double counted = 0;
  for (int64_t row = threadIdx.x; row < args.rows; row += kMeanThreads) {
    const int64_t target = args.target[row];
    if (target != args.ignore_index && checked.is_valid(target, row)) counted += 1;
  }
  counted = reduce_block(counted, 0.0);
  if (threadIdx.x != 0) return;
  const auto dloss = static_cast<double>(*static_cast<const Compute<T>*>(args.dloss));
  *scale = static_cast<Compute<T>>(dloss / counted);
}

/// Block (x, y) takes pieces of row x.
template <class T>
__global__ void __launch_bounds__(kThreads)
    cross_entropy_backward_kernel(CrossEntropyBackward args, const Compute<T>* scale_of_all) {
  using Element = Compute<T>;
  const int64_t row = blockIdx.x, target = args.target[row];
  const T* x = row_of<T>(args.logits, row, args.classes);
  T* dx = row_of<T>(args.dlogits, row, args.classes);
  const AlignedPieces<T> pieces(x, static_cast<int>(args.classes));
  const bool aligned = (reinterpret_cast<uintptr_t>(dx) - reinterpret_cast<uintptr_t>(x)) % kVectorBytes == 0;
  const bool counts = target != args.ignore_index;
  const Element logsumexp = static_cast<const Element*>(args.logsumexp)[row], scale = *scale_of_all;
  const int threads = static_cast<int>(blockDim.x);
  const int begin = static_cast<int>(blockIdx.y) * kBatch * threads + static_cast<int>(threadIdx.x);
  for (int first = begin; pieces.column(first) < pieces.size;
       first += static_cast<int>(gridDim.y) * kBatch * threads) {
    Vector<Element, pieces.kWidth> batch[kBatch] = {};
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      if (counts) batch[b] = pieces.load(x, pieces.column(first + b * threads), Element(0));
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int col = pieces.column(first + b * threads);
      const int64_t target_at = target - col;  // in the piece, if there
      Element target_logit = 0;
#pragma unroll
      for (int i = 0; i < pieces.kWidth; ++i) {
        if (i == target_at) target_logit = batch[b].at[i];
        batch[b].at[i] = counts ? exp(batch[b].at[i] - logsumexp) * scale : Element(0);
      }
      if (counts && target_at >= 0 && target_at < pieces.kWidth) {
        // expm1 keeps the digits of softmax - 1 where the target's softmax is close to 1.
        const Element gradient = expm1(target_logit - logsumexp) * scale;
#pragma unroll
        for (int i = 0; i < pieces.kWidth; ++i) {
          if (i == target_at) batch[b].at[i] = gradient;
        }
      }
      pieces.store(dx, col, batch[b], aligned);
    }
  }
}

/// The terms of a pointwise loss.
template <class T, PointwiseLoss kKind>
struct LossTerms {
  static constexpr int kElements = kVectorWidth<T>;
  const T *x, *target;
  bool aligned;

  __device__ __forceinline__ double add(int64_t first, int64_t end) const {
    T values[kElements], wanted[kElements];
    load_elements(x, first, end, aligned, values);
    load_elements(target, first, end, aligned, wanted);
    Compute<T> sum = 0;
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      const Compute<T> difference = static_cast<Compute<T>>(values[i]) - static_cast<Compute<T>>(wanted[i]);
      sum += kKind == PointwiseLoss::mse ? difference * difference : fabs(difference);
    }
    return sum;
  }
};

template <class Element>
struct StoreMean {
  Element* result;
  double count;
  __device__ __forceinline__ void operator()(double sum) const {
    *result = static_cast<Element>(sum / count);
  }
};

template <class T, PointwiseLoss kKind>
__global__ void pointwise_backward_kernel(PointwiseLossBackward args, bool aligned) {
  using Element = Compute<T>;
  constexpr int kWidth = kVectorWidth<T>;
  const auto dloss = static_cast<double>(*static_cast<const Element*>(args.dloss));
  const auto scale =
      static_cast<Element>((kKind == PointwiseLoss::mse ? 2 : 1) * (dloss / static_cast<double>(args.count)));
  const int64_t stride = int64_t{gridDim.x} * blockDim.x * kWidth;
  for (int64_t first = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kWidth; first < args.count;
       first += stride) {
    T values[kWidth], wanted[kWidth];
    load_elements(static_cast<const T*>(args.x), first, args.count, aligned, values);
    load_elements(static_cast<const T*>(args.target), first, args.count, aligned, wanted);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      const Element difference = static_cast<Element>(values[i]) - static_cast<Element>(wanted[i]);
      // The derivative of |u|: 0 at 0 and NaN at NaN, both of which are u itself.
      const Element sign = fabs(difference) > 0 ? copysign(Element(1), difference) : difference;
      values[i] = T((kKind == PointwiseLoss::mse ? difference : sign) * scale);
    }
    store_elements(static_cast<T*>(args.dx), first, args.count, aligned, values);
  }
}

/// Calls function.operator()<kKind>().
template <class Function>
void dispatch_kind(PointwiseLoss kind, const Function& function) {
  if (kind == PointwiseLoss::mse) {
    function.template operator()<PointwiseLoss::mse>();
  } else {
    function.template operator()<PointwiseLoss::l1>();
  }
}

/// Threads for a row of `classes` where each takes batches of pieces; at most `most`.
template <class T>
int threads_for_row(const char* kernel, int64_t classes, int64_t most) {
  check_columns(kernel, classes);
  const int64_t pieces = ceil_div(classes, kVectorWidth<T>) + 1;
  return static_cast<int>(std::min(ceil_div(pieces, kBatch * 32) * 32, most));
}

}  // namespace

void cross_entropy_forward(const CrossEntropyForward& args) {
  dispatch_floating(args.dtype, "cross_entropy_forward", [&]<class T>() {
    const CheckedIndex checked{input_fault(), IndexKernel::cross_entropy, args.classes};
    const int threads = threads_for_row<T>("cross_entropy_forward", args.classes, kRowThreads);
    if (threads == 32) {
      launch<cross_entropy_forward_kernel<T, WarpTeam>>(shape_for_rows<WarpTeam>(args.rows, threads), args,
                                                        checked);
    } else {
      launch<cross_entropy_forward_kernel<T, BlockTeam>>(shape_for_rows<BlockTeam>(args.rows, threads), args,
                                                         checked);
    }
    launch<mean_loss_kernel<T>>({.grid = 1, .block = kMeanThreads}, args);
  });
}

void cross_entropy_backward(const CrossEntropyBackward& args) {
  constexpr int64_t kMostChunks = 65535;
  dispatch_floating(args.dtype, "cross_entropy_backward", [&]<class T>() {
    auto* scale = static_cast<Compute<T>*>(workspace(sizeof(Compute<T>)));
    launch<gradient_scale_kernel<T>>({.grid = 1, .block = kMeanThreads}, args,
                                     CheckedIndex{input_fault(), IndexKernel::cross_entropy, args.classes},
                                     scale);
    const int threads = threads_for_row<T>("cross_entropy_backward", args.classes, kThreads);
    const int64_t chunks = ceil_div(ceil_div(args.classes, kVectorWidth<T>) + 1, kBatch * threads);
    launch<cross_entropy_backward_kernel<T>>(
        {.grid = {static_cast<unsigned>(args.rows), static_cast<unsigned>(std::min(chunks, kMostChunks))},
         .block = static_cast<unsigned>(threads)},
        args, scale);
  });
}

void pointwise_loss_forward(const PointwiseLossForward& args) {
  dispatch_floating(args.dtype, "pointwise_loss_forward", [&]<class T>() {
    dispatch_kind(args.kind, [&]<PointwiseLoss kKind>() {
      const LossTerms<T, kKind> terms{static_cast<const T*>(args.x), static_cast<const T*>(args.target),
                                      is_aligned(args.x, args.target)};
      sum_in_order(
          args.count, terms,
          StoreMean<Compute<T>>{static_cast<Compute<T>*>(args.loss), static_cast<double>(args.count)});
    });
  });
}

void pointwise_loss_backward(const PointwiseLossBackward& args) {
  dispatch_floating(args.dtype, "pointwise_loss_backward", [&]<class T>() {
    dispatch_kind(args.kind, [&]<PointwiseLoss kKind>() {
      launch<pointwise_backward_kernel<T, kKind>>(
          {.grid = grid_for(ceil_div(args.count, kVectorWidth<T>)), .block = kThreads}, args,
          is_aligned(args.x, args.target, args.dx));
    });
  });
}

}  // namespace elwise::cuda
