#pragma once

#include <cmath>

#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"
#include "cuda/vector.cuh"
#include "ops/tiled_attention_kernels.h"

// What the kernels of tiled softmax attention share; ops/tiled_attention_kernels.h has the mathematics.
//
// A block owns a tile of 32 rows of one head, queries or (for dk and dv) keys, and walks down the other side,
// its columns, in tiles of 32. It has 8 teams of 8 lanes: a thread holds 4 x 4 scores, of its team's rows,
// and of these rows' results 2 x 16 bytes of channels. So a row's maximum and sum cross one team, and a row's
// weights are written and read by one warp. Tiles are rows of channels as they are stored, in what is
// computed in: both products read both operands 16 bytes at a time, 8 (scores) and 12 (results) reads for 64
// and 128 multiply-adds, and no two rows that a warp reads at once share a bank. Heads of more channels than
// a tile holds are cut into slices: a block finds the scores from all of them and the results of one.

namespace elwise::cuda::tiled_attention {

inline constexpr int kLanes = 8;  // of a team
inline constexpr int kTeams = 8;
inline constexpr int kBlock = kLanes * kTeams;
inline constexpr int kOwn = 4;    // rows of a thread, and columns
inline constexpr int kTile = 32;  // rows: a bit each in a mask
static_assert(kTeams * kOwn == kTile && kLanes * kOwn == kTile);

/// Exponentials are taken to the base 2, of numbers that are multiplied by this.
inline constexpr double kLog2E = 1.4426950408889634;

/// Channels of a tile: 64 in f32, 32 in f64.
template <class C>
inline constexpr int kChannels = 2 * kLanes* kVectorWidth<C>;
/// Those whose results a thread holds: two vectors.
template <class C>
inline constexpr int kOwnChannels = kChannels<C> / kLanes;

template <class C>
using Scores = C[kOwn][kOwn];
template <class C>
using Results = C[kOwn][kOwnChannels<C>];

/// Rows in shared memory, 16 bytes apart from each other so that the same column lies in different banks.
template <class C, int kColumns>
struct alignas(kVectorBytes) Tile {
  C at[kTile][kColumns + kVectorWidth<C>];
};
template <class C>
using Rows = Tile<C, kChannels<C>>;
template <class C>
using Weights = Tile<C, kTile>;

__device__ __forceinline__ int lane() {
  return static_cast<int>(threadIdx.x) % kLanes;
}
/// The thread's row i and column j of a tile, and its channel c.
__device__ __forceinline__ int own_row(int i) {
  return static_cast<int>(threadIdx.x) / kLanes + kTeams * i;
}
__device__ __forceinline__ int own_column(int j) {
  return lane() + kLanes * j;
}
template <class C>
__device__ __forceinline__ int own_channel(int c) {
  return (lane() + c / kVectorWidth<C> * kLanes) * kVectorWidth<C> + c % kVectorWidth<C>;
}

/// scores += a b^T.
template <class C>
__device__ __forceinline__ void add_scores(const Rows<C>& a, const Rows<C>& b, Scores<C>& scores) {
  constexpr int kWidth = kVectorWidth<C>;
#pragma unroll 2
  for (int channel = 0; channel < kChannels<C>; channel += kWidth) {
    Vector<C, kWidth> left[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) left[i] = load<kWidth>(a.at[own_row(i)] + channel);
#pragma unroll
    for (int j = 0; j < kOwn; ++j) {
      const auto right = load<kWidth>(b.at[own_column(j)] + channel);
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
#pragma unroll
        for (int w = 0; w < kWidth; ++w) scores[i][j] = fma(left[i].at[w], right.at[w], scores[i][j]);
      }
    }
  }
}

/// results += weights b.
template <class C>
__device__ __forceinline__ void add_results(const Weights<C>& weights, const Rows<C>& b,
                                            Results<C>& results) {
  constexpr int kWidth = kVectorWidth<C>;
#pragma unroll 2
  for (int column = 0; column < kTile; column += kWidth) {
    Vector<C, kWidth> factors[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) factors[i] = load<kWidth>(weights.at[own_row(i)] + column);
#pragma unroll
    for (int w = 0; w < kWidth; ++w) {
#pragma unroll
      for (int c = 0; c < kOwnChannels<C>; c += kWidth) {
        const auto values = load<kWidth>(b.at[column + w] + own_channel<C>(c));
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
#pragma unroll
          for (int k = 0; k < kWidth; ++k) {
            results[i][c + k] = fma(factors[i].at[w], values.at[k], results[i][c + k]);
          }
        }
      }
    }
  }
}

/// Writes the thread's weights for its warp to read.
template <class C>
__device__ __forceinline__ void share(const Scores<C>& own, Weights<C>& weights) {
  __syncwarp();  // the last ones have been read
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
#pragma unroll
    for (int j = 0; j < kOwn; ++j) weights.at[own_row(i)][own_column(j)] = own[i][j];
  }
  __syncwarp();
}

/// Which of a head's tiles go first. In the causal form the last queries see most keys, and the first keys
/// are seen most: the blocks with most work go first.
enum class First : uint8_t { first_rows, last_rows };

/// What the calling block works on; kAligned: 16 bytes at a time. A length that an int cannot count could not
/// be computed in a lifetime.
template <class T, bool kAligned, class Arguments>
struct Place {
  using C = Compute<T>;

  const Arguments& args;
  int length, head;
  int64_t number;  // of the head, in all batch entries
  int64_t origin;  // the head's first channel in row 0, among all elements
  int begin;       // the tile's first row
  int slice;       // the first channel of the results

  __device__ __forceinline__ Place(const Arguments& arguments, First first)
      : args(arguments),
        length(static_cast<int>(arguments.length)),
        head(static_cast<int>(arguments.channels / arguments.heads)) {
    const unsigned slices = (static_cast<unsigned>(head) + kChannels<C> - 1) / kChannels<C>;
    const unsigned tiles = (static_cast<unsigned>(length) + kTile - 1) / kTile;
    const unsigned tile = blockIdx.x / slices % tiles;
    number = blockIdx.x / slices / tiles;
    origin = number / args.heads * args.length * args.channels + number % args.heads * head;
    begin = static_cast<int>(first == First::first_rows ? tile : tiles - 1 - tile) * kTile;
    slice = static_cast<int>(blockIdx.x % slices) * kChannels<C>;
  }

  /// Whether a tile holds all channels of a head.
  __device__ __forceinline__ bool is_whole() const { return head <= kChannels<C>; }

  /// A bit for each of the kTile rows from `first` on that exist.
  __device__ __forceinline__ unsigned rows_from(int first) const {
    return length - first >= kTile ? ~0U : (1U << (length - first)) - 1;
  }
  /// And for those that key_mask shows. All lanes of a warp must call it.
  __device__ __forceinline__ unsigned keys_from(int first) const {
    if (args.key_mask == nullptr) return rows_from(first);
    const int key = first + static_cast<int>(threadIdx.x) % kTile;
    return __ballot_sync(kAllLanes, key < length && args.key_mask[number / args.heads * length + key]);
  }
  /// Whether the query sees row `j` of the tile of keys from `first` on, of which those in `keys` are
  /// visible.
  __device__ __forceinline__ bool sees(int query, int first, int j, unsigned keys) const {
    return (keys >> j & 1) != 0 && (!args.causal || first + j <= query);
  }

  /// Where a tensor [batch, heads, length] has the head's first row.
  template <class P>
  __device__ __forceinline__ auto* statistics(P* tensor) const {
    using Element = std::conditional_t<std::is_const_v<P>, const C, C>;
    return static_cast<Element*>(tensor) + number * length;
  }

  /// The rows from `first` on that have a bit in `rows`, of a tensor [batch, length, channels]: the head's
  /// channels from `channel` on. All else becomes 0.
  __device__ __forceinline__ void load_rows(const void* tensor, int first, unsigned rows, int channel,
                                            Rows<C>& tile) const {
    constexpr int kWidth = kVectorWidth<T>, kPerRow = kChannels<C> / kWidth;
    const T* from = static_cast<const T*>(tensor) + origin + first * args.channels + channel;
#pragma unroll(kAligned ? 4 : 1)
    for (int i = 0; i < kTile * kPerRow / kBlock; ++i) {
      const int item = i * kBlock + static_cast<int>(threadIdx.x);
      const int row = item / kPerRow, column = item % kPerRow * kWidth;
      T values[kWidth];
      load_elements(from + row * args.channels, column, (rows >> row & 1) != 0 ? head - channel : 0, kAligned,
                    values);
      C computed[kWidth];
#pragma unroll
      for (int k = 0; k < kWidth; ++k) computed[k] = static_cast<C>(values[k]);
      store_elements(tile.at[row], column, column + kWidth, true, computed);
    }
  }

  /// Writes factors[i] times the results of the block's rows.
  __device__ __forceinline__ void store_results(const Results<C>& results, const C (&factors)[kOwn],
                                                void* tensor) const {
    constexpr int kWidth = kVectorWidth<C>;
    T* to = static_cast<T*>(tensor) + origin + begin * args.channels + slice;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      if (begin + own_row(i) >= length) continue;
#pragma unroll
      for (int c = 0; c < kOwnChannels<C>; c += kWidth) {
        T values[kWidth];
#pragma unroll
        for (int k = 0; k < kWidth; ++k) values[k] = T(factors[i] * results[i][c + k]);
        store_elements(to + own_row(i) * args.channels, own_channel<C>(c), head - slice, kAligned, values);
      }
    }
  }
};

struct Or {
  __device__ __forceinline__ unsigned operator()(unsigned a, unsigned b) const { return a | b; }
};

/// Which weights of a tile of queries and a tile of keys dropout keeps: a bit for each key.
struct Kept {
  unsigned of_query[kTile];
};

/// Dropout of weights, numbered as in [batch, heads, length, length].
template <class C>
struct WeightDropout {
  bool drops;
  uint32_t threshold;  // a weight is kept where its word, shifted to 24 bits, is at least this
  C raised;            // what is left of it is multiplied by this

  template <class Arguments>
  __device__ __forceinline__ explicit WeightDropout(const Arguments& args)
      : drops(args.dropout_p > 0),
        threshold(static_cast<uint32_t>(ceil(args.dropout_p * 0x1p24))),
        raised(static_cast<C>(1 / (1 - args.dropout_p))) {}

  /// Finds those of the queries and keys from the given ones on; each team its own rows' queries.
  template <class Place>
  __device__ __forceinline__ void find(const Place& place, int first_query, int first_key, Kept& kept) const {
    if (!drops) return;
#pragma unroll 1
    for (int i = 0; i < kOwn; ++i) {
      const int64_t number =
          (place.number * place.length + first_query + own_row(i)) * place.length + first_key;
      const RandomStream stream{place.args.stream.seed,
                                place.args.stream.offset + static_cast<uint64_t>(number / 4)};
      // The words of nine counters, of which a tile that does not begin with a counter's first takes part.
      const auto start = static_cast<unsigned>(number % 4);
      unsigned bits = reduce_warp<kLanes>(kept_of(stream, lane()) << (4 * lane()), Or{});
      if (start != 0) bits = bits >> start | kept_of(stream, kLanes) << (kTile - start);
      if (lane() == 0) kept.of_query[own_row(i)] = bits;
    }
  }

  __device__ __forceinline__ bool keeps(const Kept& kept, int query, int key) const {
    return !drops || (kept.of_query[query] >> key & 1) != 0;
  }

 private:
  /// A bit for each of a counter's words.
  __device__ __forceinline__ unsigned kept_of(const RandomStream& stream, int counter) const {
    const Philox4 random = philox(stream.seed, stream.offset + static_cast<uint64_t>(counter));
    unsigned bits = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) bits |= (random.word[i] >> 8 >= threshold ? 1U : 0U) << i;
    return bits;
  }
};

/// A block for every tile of every head, and every slice of its channels.
template <class T, class Arguments>
LaunchShape launch_shape(const Arguments& args) {
  const int64_t slices = ceil_div(args.channels / args.heads, kChannels<Compute<T>>);
  const int64_t blocks = args.batch * args.heads * ceil_div(args.length, kTile) * slices;
  return {.grid = static_cast<unsigned>(blocks), .block = kBlock};
}

/// Calls function.template operator()<T, kAligned>(): whether the rows of every head are aligned to 16 bytes.
template <class Arguments, class Function, class... Pointers>
void dispatch_heads(const Arguments& args, const char* kernel, Function&& function,
                    const Pointers*... tensors) {
  dispatch_floating(args.dtype, kernel, [&]<class T>() {
    if (args.channels / args.heads % kVectorWidth<T> == 0 && is_aligned(tensors...)) {
      function.template operator()<T, true>();
    } else {
      function.template operator()<T, false>();
    }
  });
}

}  // namespace elwise::cuda::tiled_attention
