#include "tests/support/cuda/traffic/traffic_cases.h"

#include <memory>

#include "core/dispatch.h"
#include "ops/aft.h"
#include "ops/attention_step.h"
#include "ops/cumsum.h"
#include "ops/dropout.h"
#include "ops/ea.h"
#include "ops/ea_series.h"
#include "ops/elementwise.h"
#include "ops/embedding.h"
#include "ops/linear_attention.h"
#include "ops/loss.h"
#include "ops/norm.h"
#include "ops/optimizer_step.h"
#include "ops/reduce.h"
#include "ops/softmax.h"
#include "ops/softmax_attention.h"
#include "ops/softmax_kernels.h"
#include "ops/view.h"

namespace emulation {
namespace {

using namespace elwise;

constexpr Device kGpu{DeviceType::cuda, 0};

Tensor values(const Shape& shape, DType dtype) {
  return randn(shape, {.dtype = dtype, .device = kGpu});
}
Tensor leaf(const Shape& shape, DType dtype) {
  return values(shape, dtype).set_requires_grad();
}
/// i64, spread over [0, size).
Tensor indices(const Shape& shape, int64_t size) {
  std::vector<int64_t> result(static_cast<size_t>(shape.count()));
  for (size_t i = 0; i < result.size(); ++i)
    result[i] = static_cast<int64_t>(i * 7919 % static_cast<size_t>(size));
  return to(from_vector(result, shape), kGpu);
}

using Op = std::function<Tensor(const std::vector<Tensor>& inputs)>;

/// The op on leaves of `shapes`, and its gradients where `y` is its shape.
TrafficCase op_case(const std::string& name, const std::vector<Shape>& shapes, const Shape& y, const Op& op) {
  return {name, [=](DType dtype) -> std::function<void()> {
            std::vector<Tensor> inputs;
            for (const Shape& shape : shapes) inputs.push_back(leaf(shape, dtype));
            const Tensor dy = values(y, dtype);
            return [=] { op(inputs).backward(dy); };
          }};
}

const Shape kRows{512, 768};     // a sequence of BERT-base
const Shape kHidden{512, 3072};  // within its feed-forward part
const Shape kSequence{1, 512, 768};
const Shape kWeights{4, 256, 512};  // of softmax attention
const Shape kLogits{77, 30522};     // masked tokens, vocabulary
constexpr int64_t kHeads = 12;

void add_elementwise_cases(std::vector<TrafficCase>& cases) {
  const auto add_case = [&](const std::string& name, const std::vector<Shape>& shapes, const Op& op) {
    cases.push_back(op_case(name, shapes, shapes[0], op));
  };
  add_case("gelu 512x3072", {kHidden}, [](const auto& in) { return gelu(in[0]); });
  add_case("exp 512x768", {kRows}, [](const auto& in) { return exp(in[0]); });
  add_case("add 512x768", {kRows, kRows}, [](const auto& in) { return in[0] + in[1]; });
  add_case("div 512x768", {kRows, kRows}, [](const auto& in) { return in[0] / in[1]; });
  add_case("add a row 512x768", {kRows, {768}}, [](const auto& in) { return in[0] + in[1]; });
  add_case("mul by a column 512x768", {kRows, {512, 1}}, [](const auto& in) { return in[0] * in[1]; });
  add_case("dropout 512x3072", {kHidden}, [](const auto& in) { return dropout(in[0], 0.1); });
  cases.push_back({"where 512x768", [](DType dtype) -> std::function<void()> {
                     const Tensor a = values(kRows, dtype), b = values(kRows, dtype);
                     const Tensor condition = to(cast(to(a, kCpu), DType::boolean), kGpu);
                     return [=] { where(condition, a, b); };
                   }});
  cases.push_back({"cast 512x768", [](DType dtype) -> std::function<void()> {
                     const Tensor x = values(kRows, dtype);
                     return [=] { cast(x, dtype == DType::bf16 ? DType::f32 : DType::bf16); };
                   }});
  cases.push_back({"fill 512x3072", [](DType dtype) -> std::function<void()> {
                     const Tensor x = values(kHidden, dtype);
                     return [=] { fill(x, 1); };
                   }});
  cases.push_back({"fill_uniform 512x3072", [](DType dtype) -> std::function<void()> {
                     const Tensor x = values(kHidden, dtype);
                     return [=] { fill_uniform(x, 0, 1); };
                   }});
  cases.push_back({"fill_normal 512x3072", [](DType dtype) -> std::function<void()> {
                     const Tensor x = values(kHidden, dtype);
                     return [=] { fill_normal(x, 0, 1); };
                   }});
}

void add_view_cases(std::vector<TrafficCase>& cases) {
  const auto add_case = [&](const std::string& name, const std::vector<Shape>& shapes, const Shape& y,
                            const Op& op) { cases.push_back(op_case(name, shapes, y, op)); };
  add_case("transpose 512x768", {kRows}, {768, 512}, [](const auto& in) { return transpose(in[0], 0, 1); });
  add_case("transpose 512x12x64", {{512, 12, 64}}, {12, 512, 64},
           [](const auto& in) { return transpose(in[0], 0, 1); });
  add_case("slice 512x768", {kRows}, {512, 384}, [](const auto& in) { return slice(in[0], 1, 0, 384); });
  add_case("concat 512x768", {kRows, kRows}, {512, 1536}, [](const auto& in) {
    return concat({in[0], in[1]}, 1);
  });
}

void add_row_cases(std::vector<TrafficCase>& cases) {
  const auto add_case = [&](const std::string& name, const std::vector<Shape>& shapes, const Shape& y,
                            const Op& op) { cases.push_back(op_case(name, shapes, y, op)); };
  add_case("layer_norm 512x768", {kRows, {768}, {768}}, kRows,
           [](const auto& in) { return layer_norm(in[0], in[1], in[2]); });
  add_case("layer_norm 128x8192", {{128, 8192}, {8192}, {8192}}, {128, 8192},
           [](const auto& in) { return layer_norm(in[0], in[1], in[2]); });
  add_case("add_layer_norm 512x768", {kRows, kRows, {768}, {768}}, kRows,
           [](const auto& in) { return add_layer_norm(in[0], in[1], in[2], in[3]).normalized; });
  add_case("softmax 4x256x512", {kWeights}, kWeights, [](const auto& in) { return softmax(in[0]); });
  cases.push_back({"softmax causal 4x512x512", [](DType dtype) -> std::function<void()> {
                     const Tensor x = values({4, 512, 512}, dtype);
                     return [=] {
                       ELWISE_DISPATCH(kGpu, softmax_forward,
                                       {.dtype = dtype,
                                        .x = x.data(),
                                        .y = x.data(),
                                        .rows = 2048,
                                        .cols = 512,
                                        .queries = 512,
                                        .causal = true});
                     };
                   }});
  add_case("sum of rows 512x768", {kRows}, {768}, [](const auto& in) { return sum(in[0], 0); });
  add_case("sum of columns 512x768", {kRows}, {512}, [](const auto& in) { return sum(in[0], 1); });
  add_case("sum 512x768", {kRows}, {}, [](const auto& in) { return sum(in[0]); });
  add_case("max of columns 512x768", {kRows}, {512}, [](const auto& in) { return max(in[0], 1).values; });
  add_case("max of rows 512x768", {kRows}, {768}, [](const auto& in) { return max(in[0], 0).values; });
  add_case("cumsum 4x512x768", {{4, 512, 768}}, {4, 512, 768},
           [](const auto& in) { return cumsum(in[0], 1); });
  add_case("cumsum of columns 512x768", {kRows}, kRows, [](const auto& in) { return cumsum(in[0], 1); });
}

void add_lookup_and_loss_cases(std::vector<TrafficCase>& cases) {
  cases.push_back({"embedding 2048x768, 1024 indices", [](DType dtype) -> std::function<void()> {
                     const Tensor table = leaf({2048, 768}, dtype), index = indices({1024}, 2048);
                     const Tensor dy = values({1024, 768}, dtype);
                     return [=] { embedding(table, index).backward(dy); };
                   }});
  cases.push_back({"embedding 2x768, 1024 indices", [](DType dtype) -> std::function<void()> {
                     const Tensor table = leaf({2, 768}, dtype), index = indices({1024}, 2);
                     const Tensor dy = values({1024, 768}, dtype);
                     return [=] { embedding(table, index).backward(dy); };
                   }});
  cases.push_back({"gather 512x768", [](DType dtype) -> std::function<void()> {
                     const Tensor x = leaf(kRows, dtype), index = indices({256, 768}, 512);
                     const Tensor dy = values({256, 768}, dtype);
                     return [=] { gather(x, 0, index).backward(dy); };
                   }});
  cases.push_back({"cross_entropy 77x30522", [](DType dtype) -> std::function<void()> {
                     const Tensor logits = leaf(kLogits, dtype), target = indices({kLogits[0]}, kLogits[1]);
                     return [=] { cross_entropy(logits, target).backward(); };
                   }});
  cases.push_back({"mse_loss 512x768", [](DType dtype) -> std::function<void()> {
                     const Tensor x = leaf(kRows, dtype), target = values(kRows, dtype);
                     return [=] { mse_loss(x, target).backward(); };
                   }});
}

void add_optimizer_cases(std::vector<TrafficCase>& cases) {
  cases.push_back({"adam_step 512x3072", [](DType dtype) -> std::function<void()> {
                     const Tensor x = values(kHidden, dtype), dx = values(kHidden, dtype);
                     const Tensor m = values(kHidden, accumulation_dtype(dtype)),
                                  v = rand(kHidden, m.options());
                     return [=] { adam_step(AdamKind::adamw, {}, 10, x, dx, m, v); };
                   }});
  cases.push_back({"sgd_step 512x3072", [](DType dtype) -> std::function<void()> {
                     const Tensor x = values(kHidden, dtype), dx = values(kHidden, dtype);
                     const Tensor velocity = values(kHidden, accumulation_dtype(dtype));
                     return [=] { sgd_step({.momentum = 0.9}, 10, x, dx, velocity); };
                   }});
  cases.push_back({"clip_gradient_norm 512x3072", [](DType dtype) -> std::function<void()> {
                     const Tensor dx = values(kHidden, dtype);
                     return [=] { clip_gradient_norm({dx}, 1); };
                   }});
}

void add_attention_cases(std::vector<TrafficCase>& cases) {
  for (const bool causal : {false, true}) {
    const std::string form = causal ? " causal" : "";
    for (const int order : {2, 6}) {
      cases.push_back(op_case("ea_series t" + std::to_string(order) + form + " 1x512x768",
                              {kSequence, kSequence, kSequence}, kSequence, [=](const auto& in) {
                                return ea_series(in[0], in[1], in[2], order,
                                                 {.causal = causal, .key_mask = {}});
                              }));
    }
    const Shape pairs{1, 256, 128};
    cases.push_back(op_case("ea" + form + " 1x256x128", {pairs, pairs, pairs}, pairs, [=](const auto& in) {
      return ea(in[0], in[1], in[2], {.causal = causal, .key_mask = {}});
    }));
    const std::vector<Shape> inputs{kSequence, kSequence, kSequence};
    cases.push_back(op_case("linear_attention" + form + " 1x512x768", inputs, kSequence, [=](const auto& in) {
      return linear_attention(in[0], in[1], in[2], kHeads, {.causal = causal, .key_mask = {}});
    }));
    cases.push_back(
        op_case("softmax_attention_tiled" + form + " 1x512x768", inputs, kSequence, [=](const auto& in) {
          return softmax_attention_tiled(in[0], in[1], in[2], kHeads, {.causal = causal, .key_mask = {}});
        }));
  }
  cases.push_back(op_case("aft 1x256x256", {{1, 256, 256}, {1, 256, 256}, {1, 256, 256}, {256, 256}},
                          {1, 256, 256}, [](const auto& in) { return aft(in[0], in[1], in[2], in[3]); }));
}

/// Steps of generation after `kBefore` tokens.
void add_step_cases(std::vector<TrafficCase>& cases) {
  constexpr int64_t kBatch = 2, kChannels = 768, kBefore = 1024;
  using Step = std::function<void(const Tensor& x)>;
  const auto add_case = [&](const std::string& name, const std::function<Step(DType)>& make) {
    cases.push_back({name + " 2x768", [=](DType dtype) -> std::function<void()> {
                       const Tensor x = values({kBatch, kChannels}, dtype);
                       return [step = make(dtype), x] { step(x); };
                     }});
  };
  const auto cache_of = [=](DType dtype) {
    const auto cache =
        std::make_shared<KeyValueCache>(key_value_cache(kBatch, kChannels, {.dtype = dtype, .device = kGpu}));
    const Tensor rows = values({kBatch, kBefore, kChannels}, dtype);
    append(*cache, rows, rows);
    return cache;
  };
  add_case("softmax_attention_step", [=](DType dtype) -> Step {
    return [cache = cache_of(dtype)](const Tensor& x) { softmax_attention_step(x, x, x, kHeads, *cache); };
  });
  add_case("ea_step", [=](DType dtype) -> Step {
    return [cache = cache_of(dtype)](const Tensor& x) { ea_step(x, x, x, *cache); };
  });
  add_case("linear_attention_step", [=](DType dtype) -> Step {
    const auto state = std::make_shared<LinearAttentionState>(
        linear_attention_state(kBatch, kChannels, kHeads, {.dtype = dtype, .device = kGpu}));
    return [state](const Tensor& x) { linear_attention_step(x, x, x, *state); };
  });
  add_case("ea_series_step t6", [=](DType dtype) -> Step {
    const auto state = std::make_shared<EaSeriesState>(
        ea_series_state(kBatch, kChannels, 6, {.dtype = dtype, .device = kGpu}));
    return [state](const Tensor& x) { ea_series_step(x, x, x, *state); };
  });
}

}  // namespace

std::vector<TrafficCase> traffic_cases() {
  std::vector<TrafficCase> cases;
  add_elementwise_cases(cases);
  add_view_cases(cases);
  add_row_cases(cases);
  add_lookup_and_loss_cases(cases);
  add_optimizer_cases(cases);
  add_attention_cases(cases);
  add_step_cases(cases);
  return cases;
}

}  // namespace emulation
