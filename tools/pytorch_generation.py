"""Generation with element-wise or softmax attention in eager PyTorch, one token at a time: the other side of
compare_pytorch.py --generate. The model is pytorch_bert.py's, causal, with its language-model head.

EA-series' state is two tensors of moments [t + 1, B, D] for each layer, updated in place (eq. 12 - 16 of
arXiv 2501.05730 as printed: nothing is rescaled); SA's cache is allocated beforehand, for scaled_dot_product_attention.

Letters in the shape comments: B sequences, D hidden width, H heads, P positions, t the order.
"""

import math
import resource
import statistics
import time

import torch
import torch.nn.functional as F
from pytorch_bert import DTYPES, BertForMaskedLm, Config, SelfAttention
from torch import Tensor


class SeriesState:
    """The moments of one layer."""

    def __init__(self, config: Config, order: int) -> None:
        self.moments = torch.zeros(2, order + 1, config.batch, config.hidden)  # of v, then of 1
        self.powers = torch.arange(order + 1.0).view(-1, 1, 1)
        self.factors = torch.tensor([2.0**n / math.factorial(n) for n in range(order + 1)]).view(-1, 1, 1)

    def fill(self, positions: int) -> None:
        """As after so many tokens, whose number does not matter to the cost."""
        self.moments.uniform_(0.5, 1).mul_(positions)

    def step(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v [B, D] -> [B, D]"""
        terms = torch.exp(-torch.square(k)) * torch.pow(k, self.powers)  # [t + 1, B, D]
        self.moments[1] += terms
        self.moments[0].addcmul_(terms, v)
        numerator, denominator = (self.moments * (self.factors * torch.pow(q, self.powers))).sum(1)
        return numerator / denominator


class KeyValueCache:
    """The keys and values of one layer [B, H, P, D / H], with room for all positions."""

    def __init__(self, config: Config) -> None:
        shape = (config.batch, config.heads, config.positions, config.hidden // config.heads)
        self.keys, self.values, self.length = torch.empty(shape), torch.empty(shape), 0

    def fill(self, positions: int) -> None:
        self.keys[:, :, :positions].normal_()
        self.values[:, :, :positions].normal_()
        self.length = positions

    def step(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v [B, D] -> [B, D]"""
        heads = self.keys.size(1)
        self.keys[:, :, self.length] = k.unflatten(-1, (heads, -1))
        self.values[:, :, self.length] = v.unflatten(-1, (heads, -1))
        self.length += 1
        context = F.scaled_dot_product_attention(q.unflatten(-1, (heads, -1))[:, :, None],
                                                 self.keys[:, :, :self.length], self.values[:, :, :self.length])
        return context.flatten(1)


State = SeriesState | KeyValueCache


def make_state(config: Config, attention: SelfAttention) -> State:
    return SeriesState(config, attention.order) if attention.kind == "series" else KeyValueCache(config)


class Generator:
    """A model and the states of its layers, one for each."""

    def __init__(self, config: Config) -> None:
        self.model = BertForMaskedLm(config).eval()
        self.layers = list(self.model.bert.encoder["layer"])
        self.states = [make_state(config, layer.attention["self"]) for layer in self.layers]
        self.position = 0

    def skip(self, positions: int) -> None:
        for state in self.states:
            state.fill(positions)
        self.position = positions

    def step(self, tokens: Tensor) -> Tensor:
        """tokens i64 [B] -> logits [B, vocabulary]"""
        table = self.model.bert.embeddings
        words = table["word_embeddings"].weight
        x = F.embedding(tokens, words) + table["position_embeddings"].weight[self.position]
        x = table["LayerNorm"](x + table["token_type_embeddings"].weight[0])
        for layer, state in zip(self.layers, self.states):
            attention = layer.attention["self"]
            context = state.step(attention.query(x), attention.key(x), attention.value(x))
            attended = layer.attention["output"](context, x)
            x = layer.output(F.gelu(layer.intermediate["dense"](attended)), attended)
        self.position += 1
        return self.model.cls["predictions"](x, words)


@torch.inference_mode()
def check_steps(config: Config) -> None:
    """Raises RuntimeError unless the steps give what the causal forward gives."""
    generator = Generator(config)
    tokens = torch.randint(config.vocabulary, (config.batch, 5))
    hidden = generator.model.bert(tokens)
    expected = generator.model.cls["predictions"](hidden, generator.model.bert.embeddings["word_embeddings"].weight)
    actual = torch.stack([generator.step(tokens[:, i]) for i in range(tokens.size(1))], 1)
    if not torch.allclose(actual, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item()):
        raise RuntimeError(f"steps of {config.attention} differ from the forward pass")


@torch.inference_mode()
def measure(config: Config, position: int, steps: int, warmup: int, threads: int, dtype: str,
            seed: int) -> dict[str, object]:
    """The median time of single steps with `position` tokens before them."""
    after_import = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    torch.set_default_dtype(DTYPES[dtype])
    torch.manual_seed(seed)
    check_steps(config)
    generator = Generator(config)
    generator.skip(position)
    tokens = torch.randint(config.vocabulary, (config.batch,))
    times: list[float] = []
    for _ in range(warmup + steps):
        start = time.perf_counter()
        generator.step(tokens)
        times.append(time.perf_counter() - start)
    return {
        "ms_per_token": 1e3 * statistics.median(times[warmup:]),
        "parameters": sum(parameter.numel() for parameter in generator.model.parameters()),
        "after_import_rss_bytes": after_import,
        "torch": torch.__version__,
    }
