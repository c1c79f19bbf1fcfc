#include <algorithm>
#include <bit>
#include <cstddef>
#include <dnnl.hpp>
#include <memory>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/error.h"
#include "core/parallel.h"
#include "ops/cpu/matmul_grid.h"
#include "ops/cpu/matmul_routes.h"

namespace elwise::cpu {
namespace {

// Primitives kept by a thread; beyond that (lengths that grow step by step) it starts afresh.
constexpr size_t kMaxCached = 512;

// Threads of an entry, in its key, that is run by one thread in a parallel loop, and of one that only tells
// whether there is a kernel for that.
constexpr int64_t kAlone = 0, kProbe = -1;
constexpr int64_t kMaxK = 20000;  // from here on oneDNN may split k over the threads

/// What a primitive depends on. Strides between products are 0 where there is one product.
struct Key {
  int64_t m, n, k, lda, ldb, ldc;
  int64_t outer, inner, a_outer, a_inner, b_outer, b_inner, c_outer, c_inner;
  int64_t flags;    // bias, accumulate, transposes, dtype
  int64_t threads;  // that oneDNN shares it out to
  int64_t scale;    // the bits of the double

  bool operator==(const Key&) const = default;
};

Key make_key(const Matmul& args, int64_t threads) {
  const bool by_outer = args.outer > 1, by_inner = args.inner > 1;
  return {.m = args.m,
          .n = args.n,
          .k = args.k,
          .lda = args.lda,
          .ldb = args.ldb,
          .ldc = args.ldc,
          .outer = args.outer,
          .inner = args.inner,
          .a_outer = by_outer ? args.a_outer : 0,
          .a_inner = by_inner ? args.a_inner : 0,
          .b_outer = by_outer ? args.b_outer : 0,
          .b_inner = by_inner ? args.b_inner : 0,
          .c_outer = by_outer ? args.c_outer : 0,
          .c_inner = by_inner ? args.c_inner : 0,
          .flags = (args.bias ? 1 : 0) | (args.accumulate ? 2 : 0) | (args.transpose_a ? 4 : 0) |
                   (args.transpose_b ? 8 : 0) | static_cast<int64_t>(args.dtype) << 4,
          .threads = threads,
          .scale = std::bit_cast<int64_t>(args.scale)};
}

struct KeyHash {
  size_t operator()(const Key& key) const {
    uint64_t hash = 0;
    for (const int64_t value :
         {key.m, key.n, key.k, key.lda, key.ldb, key.ldc, key.outer, key.inner, key.a_outer, key.a_inner,
          key.b_outer, key.b_inner, key.c_outer, key.c_inner, key.flags, key.threads, key.scale}) {
      hash = (std::rotl(hash, 23) ^ static_cast<uint64_t>(value)) * 0x9E3779B97F4A7C15u;
    }
    return hash ^ (hash >> 32);
  }
};

const dnnl::engine& engine() {
  static const dnnl::engine cpu(dnnl::engine::kind::cpu, 0);
  return cpu;
}

/// A primitive with its memory objects, whose addresses each run sets anew; no primitive where oneDNN has no
/// suitable kernel.
struct Entry {
  dnnl::matmul primitive;
  dnnl::memory a, b, bias, c, scratch;
  size_t scratch_bytes = 0;

  explicit operator bool() const { return static_cast<bool>(primitive); }
};

dnnl::matmul::primitive_desc describe(const dnnl::memory::desc& a, const dnnl::memory::desc& b,
                                      const dnnl::memory::desc& bias, const dnnl::memory::desc& c,
                                      const dnnl::primitive_attr& attributes) {
#if DNNL_VERSION_MAJOR >= 3
  return {engine(), a, b, bias, c, attributes, true};
#else
  return {dnnl::matmul::desc(a, b, bias, c), attributes, engine(), true};
#endif
}

dnnl::primitive_attr attributes_for(const Matmul& args) {
  dnnl::post_ops post_ops;
  if (args.scale != 1) {
    const auto scale = static_cast<float>(args.scale);
#if DNNL_VERSION_MAJOR >= 3
    post_ops.append_eltwise(dnnl::algorithm::eltwise_linear, scale, 0);
#else
    post_ops.append_eltwise(1, dnnl::algorithm::eltwise_linear, scale, 0);
#endif
  }
  if (args.accumulate) post_ops.append_sum(1);
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  attributes.set_post_ops(post_ops);
  return attributes;
}

Entry make_entry(const Matmul& args, int64_t threads) {
  using dnnl::memory;
  const auto type = args.dtype == DType::bf16 ? memory::data_type::bf16 : memory::data_type::f32;
  const bool single = args.outer * args.inner == 1;
  const auto matrix = [&](int64_t rows, int64_t cols, int64_t row_stride, int64_t col_stride,
                          int64_t outer_stride, int64_t inner_stride) {
    if (single) return memory::desc({rows, cols}, type, {row_stride, col_stride}, true);
    // Heads that are read in place are a 4-d product to oneDNN. The stride of a dimension of 1 has to fit,
    // too.
    const int64_t extent = std::max(rows * row_stride, cols * col_stride);
    if (args.inner == 1) inner_stride = extent;
    if (args.outer == 1) outer_stride = std::max(extent, args.inner * inner_stride);
    return memory::desc({args.outer, args.inner, rows, cols}, type,
                        {outer_stride, inner_stride, row_stride, col_stride}, true);
  };
  const int64_t a_m = args.transpose_a ? 1 : args.lda, a_k = args.transpose_a ? args.lda : 1;
  const int64_t b_k = args.transpose_b ? 1 : args.ldb, b_n = args.transpose_b ? args.ldb : 1;
  const auto a = matrix(args.m, args.k, a_m, a_k, args.a_outer, args.a_inner);
  const auto b = matrix(args.k, args.n, b_k, b_n, args.b_outer, args.b_inner);
  const auto c = matrix(args.m, args.n, args.ldc, 1, args.c_outer, args.c_inner);
  memory::desc bias;
  if (args.bias) {
    bias = single ? memory::desc({1, args.n}, type, memory::format_tag::ab)
                  : memory::desc({1, 1, 1, args.n}, type, memory::format_tag::abcd);
  }
  if (!a || !b || !c) return {};  // strides that oneDNN refuses, such as 0 for a repeated matrix
  const auto description = describe(a, b, bias, c, attributes_for(args));
  // Of oneDNN's kernels only the AVX-512 ones ("brg:avx512_core", "brg:avx512_core_bf16") sum over k in an
  // order that m, n and the thread count have no part in; the GEMM it falls back to changes its ways with the
  // thread count.
  if (!description) return {};
  const std::string_view name = description.impl_info_str();
  const bool in_order = name.starts_with("brg") && name.find("avx512_core") != name.npos;
  if (!in_order && !(threads <= 0 && name.starts_with("gemm:jit"))) return {};

  Entry entry;
  entry.primitive = dnnl::matmul(description);
  entry.a = memory(a, engine(), nullptr);
  entry.b = memory(b, engine(), nullptr);
  entry.c = memory(c, engine(), nullptr);
  if (args.bias) entry.bias = memory(bias, engine(), nullptr);
  entry.scratch = memory(description.scratchpad_desc(), engine(), nullptr);
  entry.scratch_bytes = description.scratchpad_desc().get_size();
  return entry;
}

Entry& cached_entry(const Matmul& args, int64_t threads) {
  thread_local std::unordered_map<Key, Entry, KeyHash> cache;
  const Key key = make_key(args, threads);
  const auto found = cache.find(key);
  if (found != cache.end()) return found->second;
  if (cache.size() >= kMaxCached) cache.clear();
  return cache.emplace(key, make_entry(args, threads)).first->second;
}

/// Part `part` of `parts` of the workspace, or where its size does not do (it does for some 64 threads) a
/// buffer that this thread keeps.
void* scratch_for(const Matmul& args, size_t bytes, int64_t part = 0, int64_t parts = 1) {
  if (bytes <= static_cast<size_t>(kMatmulWorkspaceBytes / parts) && part < parts) {
    return static_cast<std::byte*>(args.workspace) + kMatmulWorkspaceBytes / parts * part;
  }
  thread_local std::vector<std::byte> buffer;
  if (buffer.size() < bytes + 64) buffer.resize(bytes + 64);
  void* start = buffer.data();
  size_t space = buffer.size();
  return std::align(64, bytes, start, space);
}

void run(Entry& entry, const Matmul& args, void* scratch) {
  // oneDNN's interface knows no const; it only reads these.
  entry.a.set_data_handle(const_cast<void*>(args.a));
  entry.b.set_data_handle(const_cast<void*>(args.b));
  entry.c.set_data_handle(args.c);
  entry.scratch.set_data_handle(scratch);
  dnnl_exec_arg_t arguments[5] = {{DNNL_ARG_SRC, entry.a.get()},
                                  {DNNL_ARG_WEIGHTS, entry.b.get()},
                                  {DNNL_ARG_DST, entry.c.get()},
                                  {DNNL_ARG_SCRATCHPAD, entry.scratch.get()}};
  int count = 4;
  if (args.bias) {
    entry.bias.set_data_handle(const_cast<void*>(args.bias));
    arguments[count++] = {DNNL_ARG_BIAS, entry.bias.get()};
  }
  thread_local const dnnl::stream stream(engine());
  // The C interface, because dnnl::primitive::execute builds a map and a vector for every run.
  const dnnl_status_t status = dnnl_primitive_execute(entry.primitive.get(), stream.get(), count, arguments);
  ELWISE_CHECK(status == dnnl_success, "matmul: oneDNN failed with status ", status, " for [", args.m, ", ",
               args.k, "] x [", args.k, ", ", args.n, "]");
}

/// One product, on the calling thread.
void multiply_alone(const Matmul& product) {
  constexpr int64_t kThreads = 64;
  Entry& entry = cached_entry(product, kAlone);
  ELWISE_CHECK(entry, "matmul: oneDNN has no bf16 kernel for [", product.m, ", ", product.k, "] x [",
               product.k, ", ", product.n, "]");
  run(entry, product, scratch_for(product, entry.scratch_bytes, thread_index(), kThreads));
}

}  // namespace

bool matmul_onednn(const Matmul& args) {
  if (args.dtype != DType::f32 || (args.bias && args.scale != 1)) return false;
  if (args.transpose_a || !args.transpose_b || args.k >= kMaxK) return false;
  Entry& entry = cached_entry(args, num_threads());
  if (!entry) return false;
  run(entry, args, scratch_for(args, entry.scratch_bytes));
  return true;
}

bool matmul_onednn_bf16(const Matmul& args) {
  if (args.bias && args.scale != 1) return false;
  // Operands as they are stored: at BERT-base's shapes a weight packed beforehand is little faster, and
  // packing it, which forward and backward need in two layouts for one product each, takes about as long as
  // that saves.
  if (Entry& entry = cached_entry(args, num_threads())) {
    run(entry, args, scratch_for(args, entry.scratch_bytes));
    return true;
  }
  // Matrices with gaps between their rows are left to oneDNN's GEMM, in which no thread but one takes part.
  const int64_t products = args.outer * args.inner;
  if (products == 1 || !cached_entry(block_of(args, 0, 0, args.m, 0, args.n), kProbe)) return false;
  parallel_for(products, 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) multiply_alone(block_of(args, item, 0, args.m, 0, args.n));
  });
  return true;
}

}  // namespace elwise::cpu
