#include "ops/softmax_kernels.h"

#include "cuda/launch.cuh"
#include "cuda/row.cuh"
#include "cuda/softmax_cudnn.h"

// Softmax by cuDNN where nothing is hidden, and by the kernels here where a mask or causality hides columns,
// which its softmax does not know, or where a view starts between two 16-byte boundaries.

namespace elwise::cuda {
namespace {

template <class Team>
constexpr int kSoftmaxThreads = Team::kHoldsAll ? kRowsPerBlock * 32 : 512;

/// Which columns of a row may be seen: the first `count`, of which `mask` hides some unless it is null.
struct VisibleColumns {
  int count;
  const bool* mask;

  /// visible.at[i]: whether column col + i is.
  template <int kWidth>
  __device__ __forceinline__ Vector<bool, kWidth> at(int col) const {
    Vector<bool, kWidth> visible;
    if (mask != nullptr) visible = load<kWidth>(mask + col);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) visible.at[i] = (mask == nullptr || visible.at[i]) && col + i < count;
    return visible;
  }
};

template <class T, int kWidth, class Team>
__global__ void __launch_bounds__(kSoftmaxThreads<Team>, 1) softmax_forward_kernel(SoftmaxForward args) {
  using Element = Compute<T>;
  using Piece = Vector<Element, kWidth>;
  const int64_t row = int64_t{blockIdx.x} * Team::teams() + Team::number();
  if (row >= args.rows) return;
  const int cols = static_cast<int>(args.cols);
  const T* x = row_of<T>(args.x, row, cols);
  T* y = row_of<T>(args.y, row, cols);
  const VisibleColumns columns{
      .count = args.causal ? static_cast<int>(min(args.cols, row % args.queries + 1)) : cols,
      .mask = row_of<bool>(args.key_mask, row / (args.rows / args.batch), cols)};

  // What hidden columns hold is not looked at.
  const auto load_logits = [=](int col) {
    Piece logits;
    if (col < columns.count) logits = load_compute<kWidth>(x + col);
    const auto visible = columns.at<kWidth>(col);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) logits.at[i] = visible.at[i] ? logits.at[i] : -Element(INFINITY);
    return logits;
  };
  HeldRow<T, kWidth, Team, Piece> row_values(cols, load_logits);
  Element largest = -Element(INFINITY);
  row_values.each(load_logits, [&](int, int, const Piece& logits) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) largest = fmax(largest, logits.at[i]);
  });
  largest = reduce_team<Team>(largest, -Element(INFINITY), LargerNumber{});  // a NaN is left to the sum

  const auto exponentials = [=](const Piece& logits) {
    Piece result;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) result.at[i] = exp(logits.at[i] - largest);
    return result;
  };
  Element sum = 0;
  row_values.each(load_logits, [&](int, int, Piece& piece) {
    piece = exponentials(piece);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sum += piece.at[i];
  });
  const Element scale = 1 / reduce_team<Team>(sum, Element(0));
  const auto load_exponentials = [=](int col) { return exponentials(load_logits(col)); };
  row_values.each(load_exponentials, [&](int, int col, Piece& piece) {
    const auto visible = columns.at<kWidth>(col);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) piece.at[i] = visible.at[i] ? piece.at[i] * scale : Element(0);
    store_compute<kWidth>(y + col, piece);
  });
}

/// One column of y and of dy: where more can be read at a time, cuDNN does it.
template <class Element>
struct SoftmaxGradient {
  Element y, dy;
};

template <class T, class Team>
__global__ void __launch_bounds__(kSoftmaxThreads<Team>, 1) softmax_backward_kernel(SoftmaxBackward args) {
  using Element = Compute<T>;
  using Gradient = SoftmaxGradient<Element>;
  const int64_t row = int64_t{blockIdx.x} * Team::teams() + Team::number();
  if (row >= args.rows) return;
  const int cols = static_cast<int>(args.cols);
  const T* y = row_of<T>(args.y, row, cols);
  const T* dy = row_of<T>(args.dy, row, cols);
  T* dx = row_of<T>(args.dx, row, cols);
  const auto load_gradient = [=](int col) {
    return Gradient{static_cast<Element>(y[col]), static_cast<Element>(dy[col])};
  };
  HeldRow<T, 1, Team, Gradient> gradient(cols, load_gradient);
  Element dot = 0;
  gradient.each(load_gradient, [&](int, int, const Gradient& at) { dot += at.y * at.dy; });
  dot = reduce_team<Team>(dot, Element(0));
  gradient.each(load_gradient, [&](int, int col, const Gradient& at) { dx[col] = T(at.y * (at.dy - dot)); });
}

}  // namespace

void softmax_forward(const SoftmaxForward& args) {
  if (args.rows == 0 || args.cols == 0) return;
  const bool aligned = is_aligned(args.x, args.y);
  if (args.key_mask == nullptr && !args.causal && aligned) return softmax_forward_cudnn(args);
  dispatch_floating(args.dtype, "softmax_forward", [&]<class T>() {
    const bool mask_aligned = reinterpret_cast<uintptr_t>(args.key_mask) % kVectorWidth<T> == 0;
    dispatch_row<T>("softmax_forward", args.cols, aligned && mask_aligned, kSoftmaxThreads<BlockTeam>,
                    [&]<int kWidth, class Team>(int threads) {
                      launch<softmax_forward_kernel<T, kWidth, Team>>(
                          shape_for_rows<Team>(args.rows, threads), args);
                    });
  });
}

void softmax_backward(const SoftmaxBackward& args) {
  if (args.rows == 0 || args.cols == 0) return;
  if (is_aligned(args.y, args.dy, args.dx)) return softmax_backward_cudnn(args);
  dispatch_floating(args.dtype, "softmax_backward", [&]<class T>() {
    dispatch_team<T, 1>(
        "softmax_backward", args.cols, kSoftmaxThreads<BlockTeam>, [&]<class Team>(int threads) {
          launch<softmax_backward_kernel<T, Team>>(shape_for_rows<Team>(args.rows, threads), args);
        });
  });
}

}  // namespace elwise::cuda
