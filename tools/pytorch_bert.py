"""BERT with element-wise or softmax attention in PyTorch, and what its training step costs: the other side of
compare_pytorch.py. Parameters have the names and shapes of models/bert.h; tests/tools/compare_pytorch_test.py
holds the model to the golden values that Elwise is held to.

Letters in the shape comments: B sequences, L tokens, D hidden width, N masked tokens.
"""

import dataclasses
import math
import re
import resource
import statistics
import time
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-12
INITIALIZER_DEVIATION = 0.02
LEAST_POSITIONS = 512  # rows of the position table, as in BertConfig::for_length
TOKEN_TYPES = 2


@dataclasses.dataclass(frozen=True)
class Config:
    """The sizes of one model and batch; the defaults are BERT-base's."""

    attention: str
    length: int
    batch: int = 1
    causal: bool = False
    layers: int = 12
    hidden: int = 768
    heads: int = 12
    intermediate: int = 3072
    vocabulary: int = 30522
    positions: int = LEAST_POSITIONS


def ea(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Full EA, eq. 2: every weight [B, L, L, D] is a tensor."""
    weights = torch.exp(-torch.square(q[:, :, None] - k[:, None]))
    if causal:
        length = q.size(1)
        weights = weights * torch.ones(length, length, dtype=q.dtype).tril()[:, :, None]
    return (weights * v[:, None]).sum(2) / weights.sum(2)


def ea_series(q: Tensor, k: Tensor, v: Tensor, order: int, causal: bool) -> Tensor:
    """EA-series as figure 2 composes it: exp, powers, sums (running sums when causal), one division.

    Powers are running products, which cost less than pow; 2^n / n! goes into those of q.
    """

    def accumulated(terms: Tensor) -> Tensor:
        return terms.cumsum(1) if causal else terms.sum(1, keepdim=True)

    key_term = torch.exp(-torch.square(k))  # exp(-k^2) k^n
    numerator, denominator = accumulated(key_term * v), accumulated(key_term)
    query_term = None  # 2^n / n! q^n
    for n in range(1, order + 1):
        key_term = key_term * k
        query_term = 2 * q if query_term is None else query_term * (q * (2 / n))
        numerator = torch.addcmul(numerator, query_term, accumulated(key_term * v))
        denominator = torch.addcmul(denominator, query_term, accumulated(key_term))
    return numerator / denominator


class SelfAttention(nn.Module):
    """The projections and the attention by its name: x [B, L, D] -> [B, L, D]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.query = nn.Linear(config.hidden, config.hidden)
        self.key = nn.Linear(config.hidden, config.hidden)
        self.value = nn.Linear(config.hidden, config.hidden)
        self.heads, self.causal = config.heads, config.causal
        self.kind = "series" if re.search(r"\d$", config.attention) else config.attention
        self.order = int(config.attention.rpartition("-")[2]) if self.kind == "series" else 0

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.query(x), self.key(x), self.value(x)
        if self.kind == "series":
            return ea_series(q, k, v, self.order, self.causal)
        if self.kind == "ea":
            return ea(q, k, v, self.causal)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        context = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return context.transpose(1, 2).flatten(2)


class Output(nn.Module):
    """A dense layer, the residual and a LayerNorm."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, hidden)
        self.LayerNorm = nn.LayerNorm(hidden, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + residual)


class EncoderLayer(nn.Module):
    """Post-LN, as in BERT: attention, then the feed-forward network."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        attention = {"self": SelfAttention(config), "output": Output(config.hidden, config.hidden)}
        self.attention = nn.ModuleDict(attention)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(config.hidden, config.intermediate)})
        self.output = Output(config.intermediate, config.hidden)

    def forward(self, x: Tensor) -> Tensor:
        attended = self.attention["output"](self.attention["self"](x), x)
        return self.output(F.gelu(self.intermediate["dense"](attended)), attended)


class Bert(nn.Module):
    """Embeddings, encoder and pooler (which the masked-LM loss leaves alone, on both sides)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        hidden = config.hidden
        self.embeddings = nn.ModuleDict({
            "word_embeddings": nn.Embedding(config.vocabulary, hidden),
            "position_embeddings": nn.Embedding(config.positions, hidden),
            "token_type_embeddings": nn.Embedding(TOKEN_TYPES, hidden),
            "LayerNorm": nn.LayerNorm(hidden, eps=LAYER_NORM_EPS),
        })
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))})
        self.pooler = nn.ModuleDict({"dense": nn.Linear(hidden, hidden)})

    def forward(self, tokens: Tensor, types: Tensor | None = None) -> Tensor:
        """tokens, types i64 [B, L] (no types: all 0) -> hidden states [B, L, D]."""
        table = self.embeddings
        type_table = table["token_type_embeddings"].weight
        x = table["word_embeddings"](tokens) + table["position_embeddings"].weight[: tokens.size(1)]
        x = table["LayerNorm"](x + (type_table[0] if types is None else type_table[types]))
        for layer in self.encoder["layer"]:
            x = layer(x)
        return x


class Predictions(nn.Module):
    """The masked-language-model head: dense, GELU, LayerNorm, the token table transposed, a bias."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.transform = nn.ModuleDict({
            "dense": nn.Linear(config.hidden, config.hidden),
            "LayerNorm": nn.LayerNorm(config.hidden, eps=LAYER_NORM_EPS),
        })
        self.bias = nn.Parameter(torch.zeros(config.vocabulary))

    def forward(self, x: Tensor, token_table: Tensor) -> Tensor:
        """x [N, D], token_table [vocabulary, D] -> logits [N, vocabulary]."""
        transformed = self.transform["LayerNorm"](F.gelu(self.transform["dense"](x)))
        return F.linear(transformed, token_table, self.bias)


class BertForMaskedLm(nn.Module):
    """Called with a batch it gives the masked-LM loss, of the masked positions only."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.bert = Bert(config)
        self.cls = nn.ModuleDict({"predictions": Predictions(config)})
        for name, parameter in self.named_parameters():
            if name.endswith("LayerNorm.weight"):
                nn.init.ones_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, 0, INITIALIZER_DEVIATION)

    def head(self, hidden: Tensor, masked: Tensor, labels: Tensor) -> Tensor:
        """The loss from hidden states [B, L, D]; masked i64 [N] are indices into B * L, labels i64 [N]."""
        chosen = hidden.flatten(0, 1)[masked]
        logits = self.cls["predictions"](chosen, self.bert.embeddings["word_embeddings"].weight)
        return F.cross_entropy(logits, labels)

    def forward(self, tokens: Tensor, masked: Tensor, labels: Tensor) -> Tensor:
        return self.head(self.bert(tokens), masked, labels)


def masked_lm_batch(config: Config, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens by Zipf's law, BERT's masking of round(0.15 B L) of them, as in masked_lm_data.h."""
    ordinary, count = config.vocabulary - 1, config.batch * config.length
    uniform = torch.rand(count, generator=generator, dtype=torch.float64)
    tokens = ((ordinary + 1) ** uniform).long().sub_(1).clamp_(0, ordinary - 1)
    chosen = max(1, math.floor(0.15 * count + 0.5))
    masked = torch.randperm(count, generator=generator)[:chosen].sort().values
    labels = tokens[masked]
    draw = torch.randint(10, (chosen,), generator=generator)
    random_tokens = torch.randint(ordinary, (chosen,), generator=generator)
    tokens[masked] = torch.where(draw < 8, ordinary, torch.where(draw == 8, random_tokens, labels))
    return tokens.view(config.batch, config.length), masked, labels


@dataclasses.dataclass(frozen=True)
class Run:
    """How a model is trained and measured."""

    compiled: bool
    optimizer: str  # fused, foreach or single: AdamW's implementation
    steps: int
    warmup: int
    threads: int
    dtype: str
    seed: int = 0
    device: str = "cpu"
    tf32: bool = False
    step_in_backward: bool = False


# bf16: parameters, gradients and AdamW's moments too, without f32 master weights. It is the faster of PyTorch's two
# ways: autocast keeps f32 parameters, and casts them at each use.
DTYPES = {"f32": torch.float32, "f64": torch.float64, "bf16": torch.bfloat16}


def adamw(parameters: Iterable[nn.Parameter], implementation: str) -> torch.optim.AdamW:
    choice = {"fused": {"fused": True}, "foreach": {"foreach": True}, "single": {"foreach": False}}
    return torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.01, **choice[implementation])


def step_in_backward(model: nn.Module, implementation: str) -> None:
    """Gives each parameter an optimizer of its own, which steps once the gradient is there and frees it."""
    for parameter in model.parameters():
        optimizer = adamw([parameter], implementation)

        def step(_: torch.Tensor, optimizer: torch.optim.AdamW = optimizer) -> None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        parameter.register_post_accumulate_grad_hook(step)


def measure(config: Config, run: Run) -> dict[str, object]:
    """Trains for warmup + steps steps. Times are medians over the measured ones, as in cost_measurement.cpp."""
    after_import = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    torch.set_num_threads(run.threads)
    torch.set_num_interop_threads(1)
    torch.set_default_dtype(DTYPES[run.dtype])
    torch.manual_seed(run.seed)
    torch.backends.cuda.matmul.allow_tf32 = run.tf32
    on_gpu = run.device != "cpu"

    def now() -> float:
        if on_gpu:
            torch.cuda.synchronize(run.device)
        return time.perf_counter()

    generator = torch.Generator().manual_seed(run.seed)
    model = BertForMaskedLm(config).to(run.device).train()
    optimizer = None if run.step_in_backward else adamw(model.parameters(), run.optimizer)
    if optimizer is None:
        step_in_backward(model, run.optimizer)
    loss_of = torch.compile(model, dynamic=False) if run.compiled else model
    times: list[tuple[float, ...]] = []
    losses: list[float] = []
    for _ in range(run.warmup + run.steps):
        batch = [part.to(run.device) for part in masked_lm_batch(config, generator)]
        start = now()
        loss = loss_of(*batch)
        forward = now()
        loss.backward()
        backward = now()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        end = now()
        times.append((end - start, forward - start, backward - forward, end - backward))
        losses.append(loss.item())
    step, *parts = (1e3 * statistics.median(column) for column in zip(*times[run.warmup:]))
    return {
        "step_ms": step,
        **dict(zip(("forward_ms", "backward_ms", "optimizer_ms"), parts)),
        "first_step_ms": 1e3 * times[0][0],
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "after_import_rss_bytes": after_import,
        **({"peak_bytes": torch.cuda.max_memory_allocated(run.device)} if on_gpu else {}),
        "optimizer": run.optimizer,
        "torch": torch.__version__,
    }
