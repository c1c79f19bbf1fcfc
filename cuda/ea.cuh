#pragma once

#include "cuda/launch.cuh"
#include "cuda/reduce.cuh"
#include "cuda/vector.cuh"
#include "ops/ea_kernels.h"

// What the kernels of full element-wise attention share; ops/ea_kernels.h has the mathematics.
//
// Lanes are channels, so nothing crosses lanes. A block owns kRows rows (queries, or keys where dk and dv are
// summed) of kChannels channels, a thread kOwn of the rows in one channel: what it reads of the other side
// serves kOwn pairs. The other side comes in tiles of kTile rows through shared memory, loaded one tile ahead
// into registers, 16 bytes an access. Only the visible keys of a tile are kept, side by side: hidden ones
// cost nothing. Sums are blocked by tile. An f32 pair takes one exponential, of which a multiprocessor makes
// 16 per clock, and 5 (forward) to 7 (dk, dv) of the other instructions, of which it makes 128 (H100; 64 on
// A100).

namespace elwise::cuda::ea {

inline constexpr int kLanes = 32;
inline constexpr int kChannels = kLanes;  // of a block
inline constexpr int kWarps = 4;          // of a block
inline constexpr int kBlock = kWarps * kLanes;
inline constexpr int kTile = 32;  // rows: a bit each in a mask
/// Blocks of f32 and bf16 that a multiprocessor has registers for: those of a batch of 1 with 512 tokens of
/// 768 channels (384 blocks) run at once on 132 multiprocessors.
inline constexpr int kResident = 3;

/// Rows of a thread, and of a block.
template <class T>
inline constexpr int kOwn = sizeof(T) == 8 ? 4 : 8;
template <class T>
inline constexpr int kRows = kWarps* kOwn<T>;

/// The references r_i.
struct References {
  DType dtype;
  const void* q;  // [batch, length, channels]
  const void* k;  // [batch, length, channels]
  void* r;        // [batch, length, channels]
  int64_t batch;
  int64_t length;
  int64_t channels;
  bool causal;
  const bool* key_mask;  // [batch, length] or null
};

/// Writes them to r. They are queries or keys, so that any dtype holds them exactly.
void find_references(const References&);

template <class Arguments>
void find_references(const Arguments& args, void* r) {
  find_references({.dtype = args.dtype,
                   .q = args.q,
                   .k = args.k,
                   .r = r,
                   .batch = args.batch,
                   .length = args.length,
                   .channels = args.channels,
                   .causal = args.causal,
                   .key_mask = args.key_mask});
}

/// A block for every kRows rows of kChannels channels of a batch entry.
template <class T, class Arguments>
LaunchShape launch_shape(const Arguments& args) {
  const int64_t blocks = args.batch * ceil_div(args.length, kRows<T>) * ceil_div(args.channels, kChannels);
  return {.grid = static_cast<unsigned>(blocks), .block = kBlock};
}

/// Which of an entry's rows go first. In the causal form the last queries see most keys, and the first keys
/// are seen most: the blocks with most work go first.
enum class First : uint8_t { first_rows, last_rows };

/// Which rows and channel of which batch entry the calling thread owns. A length or a row that an int cannot
/// count could not be computed in a lifetime.
template <class T, class Arguments>
struct Place {
  using C = Compute<T>;

  const Arguments& args;
  int length, channels;
  int64_t entry;       // the batch entry's first row among all rows
  int block_row, row;  // the first one of the block, of the thread
  int block_channel, channel;

  __device__ __forceinline__ Place(const Arguments& arguments, First first)
      : args(arguments),
        length(static_cast<int>(arguments.length)),
        channels(static_cast<int>(arguments.channels)) {
    const unsigned groups = (static_cast<unsigned>(channels) + kChannels - 1) / kChannels;
    const unsigned tiles = (static_cast<unsigned>(length) + kRows<T> - 1) / kRows<T>;
    const unsigned tile = blockIdx.x / groups % tiles;
    entry = blockIdx.x / groups / tiles * args.length;
    block_row = static_cast<int>(first == First::first_rows ? tile : tiles - 1 - tile) * kRows<T>;
    row = block_row + static_cast<int>(threadIdx.x) / kLanes * kOwn<T>;
    block_channel = static_cast<int>(blockIdx.x % groups) * kChannels;
    channel = block_channel + static_cast<int>(threadIdx.x) % kLanes;
  }

  __device__ __forceinline__ int64_t at(int row, int channel) const {
    return (entry + row) * channels + channel;
  }
  __device__ __forceinline__ bool owns(int i) const { return row + i < length && channel < channels; }
  /// The thread's row i of a tensor of S, 0 where there is none.
  template <class S = T>
  __device__ __forceinline__ C load(const void* tensor, int i) const {
    return owns(i) ? static_cast<C>(static_cast<const S*>(tensor)[at(row + i, channel)]) : C(0);
  }
  template <class S = T>
  __device__ __forceinline__ void store(void* tensor, int i, C value) const {
    if (owns(i)) static_cast<S*>(tensor)[at(row + i, channel)] = S(value);
  }
};

/// A bit for each of the kTile rows from `begin` on that exist, before `end`, and are not masked. All lanes
/// of a warp must call it.
template <class T, class Arguments>
__device__ __forceinline__ unsigned visible_rows(const Place<T, Arguments>& place, int begin, int end) {
  const int row = begin + static_cast<int>(threadIdx.x) % kLanes;
  const bool* mask = place.args.key_mask;
  return __ballot_sync(kAllLanes, row < end && (mask == nullptr || mask[place.entry + row]));
}

/// The visible keys of a tile.
struct KeyTile {
  int begin = 0;         // its first row
  unsigned visible = 0;  // a bit for each row

  __device__ __forceinline__ bool shows(int row) const { return (visible >> row & 1) != 0; }
  /// How many are visible before `row` of the tile: where it stands in shared memory.
  __device__ __forceinline__ int before(int row) const {
    const unsigned rows = row >= kTile ? ~0U : row > 0 ? (1U << row) - 1 : 0;
    return __popc(visible & rows);
  }
};

/// The tile from row `begin` on or, where nothing is visible in it, the next one that shows a key before
/// `end`. None does where its `visible` is 0.
template <class T, class Arguments>
__device__ __forceinline__ KeyTile find_keys(const Place<T, Arguments>& place, int begin, int end) {
  KeyTile tile{begin};
  for (; tile.begin < end; tile.begin += kTile) {
    tile.visible = visible_rows(place, tile.begin, end);
    if (tile.visible != 0) break;
  }
  return tile;
}

/// N neighbouring channels of each row of a tile: what a thread takes from global to shared memory at once.
/// N is 1 where rows are not aligned.
template <int N>
struct Chunk {
  static constexpr int kPerRow = kChannels / N;
  static constexpr int kOfThread = kTile * kPerRow / kBlock;
  static_assert(kOfThread * kBlock == kTile * kPerRow);

  int row, column;

  /// Chunk i of the calling thread.
  __device__ __forceinline__ explicit Chunk(int i)
      : row((i * kBlock + static_cast<int>(threadIdx.x)) / kPerRow),
        column(static_cast<int>(threadIdx.x) % kPerRow * N) {}
};

/// The chunk's elements of a tensor of S in the tile that starts at row `begin`; 0 beyond the last channel.
template <class S, int N, class T, class Arguments>
__device__ __forceinline__ void load_chunk(const Place<T, Arguments>& place, const void* tensor, int begin,
                                           Chunk<N> chunk, S (&values)[N]) {
  const int channel = place.block_channel + chunk.column;
  const int64_t first = place.at(begin + chunk.row, channel);
  load_elements(static_cast<const S*>(tensor), first, channel < place.channels ? first + N : first, true,
                values);
}

/// A tile in shared memory. Threads write chunks, and read their own channel.
template <class C>
struct alignas(kVectorBytes) Tile {
  C at[kTile][kChannels];

  __device__ __forceinline__ C own(int row) const { return at[row][threadIdx.x % kLanes]; }

  template <class T, int N>
  __device__ __forceinline__ void set(int row, int column, const T (&values)[N]) {
    C computed[N];
#pragma unroll
    for (int i = 0; i < N; ++i) computed[i] = static_cast<C>(values[i]);
    store_elements(at[row], column, column + N, true, computed);
  }
};

/// Calls function.template operator()<T, N>() for tensors of T whose rows are read N channels at a time: 16
/// bytes or, where a pointer or a row is not aligned, 1.
template <class Function, class... Pointers>
void dispatch_chunks(DType dtype, const char* kernel, int64_t channels, Function&& function,
                     const Pointers*... tensors) {
  dispatch_floating(dtype, kernel, [&]<class T>() {
    if (channels % kVectorWidth<T> == 0 && is_aligned(tensors...)) {
      function.template operator()<T, kVectorWidth<T>>();
    } else {
      function.template operator()<T, 1>();
    }
  });
}

/// f32: the hardware's exp2, within 2 + 1.2 |x| units in the last place (CUDA C++ Programming Guide).
__device__ __forceinline__ float exponential(float x) {
  return __expf(x);
}
__device__ __forceinline__ double exponential(double x) {
  return exp(x);
}

/// A query and a key; kNear: the reference is the query.
template <bool kNear, class C>
struct Pair {
  C displacement;  // k - r
  C distance;      // q - k
  C weight;

  __device__ __forceinline__ Pair(C query, C reference, C key)
      : displacement(key - (kNear ? query : reference)),
        distance(kNear ? -displacement : query - key),
        weight(exponential(displacement * (kNear ? distance : (query - reference) + distance))) {}
};

/// The keys and values of a tile on their way to shared memory.
template <class T, int N>
class KeyStage {
 public:
  template <class Arguments>
  __device__ __forceinline__ void load(const Place<T, Arguments>& place, const KeyTile& tile) {
#pragma unroll
    for (int i = 0; i < kOfThread; ++i) {
      const Chunk<N> chunk(i);
      if (!tile.shows(chunk.row)) continue;
      load_chunk(place, place.args.k, tile.begin, chunk, keys_[i]);
      load_chunk(place, place.args.v, tile.begin, chunk, values_[i]);
    }
  }

  __device__ __forceinline__ void store(const KeyTile& tile, Tile<Compute<T>>& keys,
                                        Tile<Compute<T>>& values) const {
#pragma unroll
    for (int i = 0; i < kOfThread; ++i) {
      const Chunk<N> chunk(i);
      if (!tile.shows(chunk.row)) continue;
      keys.set(tile.before(chunk.row), chunk.column, keys_[i]);
      values.set(tile.before(chunk.row), chunk.column, values_[i]);
    }
  }

 private:
  static constexpr int kOfThread = Chunk<N>::kOfThread;
  T keys_[kOfThread][N], values_[kOfThread][N];
};

/// walk_keys for a tile. Own query i sees the keys before row `diagonal` + i of it.
template <bool kNear, int kQueries, class C, class Sums>
__device__ __forceinline__ void add_keys(const KeyTile& tile, int diagonal, const Tile<C>& keys,
                                         const Tile<C>& values, Sums& sums) {
  const int seen_by_all = tile.before(diagonal), seen_by_last = tile.before(diagonal + kQueries - 1);
#pragma unroll(kNear ? 2 : 1)
  for (int j = 0; j < seen_by_all; ++j) {
    const C key = keys.own(j), value = values.own(j);
#pragma unroll
    for (int i = 0; i < kQueries; ++i) sums.template add<kNear>(i, key, value);
  }
#pragma unroll 1
  for (int j = seen_by_all; j < seen_by_last; ++j) {
    const C key = keys.own(j), value = values.own(j);
#pragma unroll
    for (int i = 1; i < kQueries; ++i) {
      if (j < tile.before(diagonal + i)) sums.template add<kNear>(i, key, value);
    }
  }
}

/// Calls sums.add<kNear>(i, key, value) for the thread's queries i and the keys that they see, in order, and
/// sums.end_tile() after each tile. All threads of the block must call it; `all_near`, that every reference
/// of the thread is its query, may differ from thread to thread.
template <int N, class T, class Arguments, class Sums>
__device__ __forceinline__ void walk_keys(const Place<T, Arguments>& place, bool all_near, Sums& sums) {
  __shared__ Tile<Compute<T>> keys, values;
  const bool warp_near = __all_sync(kAllLanes, all_near) != 0;
  const int end = place.args.causal ? min(place.block_row + kRows<T>, place.length) : place.length;
  KeyStage<T, N> stage;
  KeyTile next = find_keys(place, 0, end);
  if (next.visible != 0) stage.load(place, next);
  while (next.visible != 0) {
    const KeyTile tile = next;
    __syncthreads();  // all have read the last tile
    stage.store(tile, keys, values);
    __syncthreads();
    next = find_keys(place, tile.begin + kTile, end);
    if (next.visible != 0) stage.load(place, next);
    if (!place.owns(0)) continue;
    const int diagonal = place.args.causal ? place.row + 1 - tile.begin : kTile;
    if (warp_near) {
      add_keys<true, kOwn<T>>(tile, diagonal, keys, values, sums);
    } else {
      add_keys<false, kOwn<T>>(tile, diagonal, keys, values, sums);
    }
    sums.end_tile();
  }
}

}  // namespace elwise::cuda::ea
