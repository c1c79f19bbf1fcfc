"""Golden values for a small BERT, computed with PyTorch in float64.

    python3 -m venv venv && . venv/bin/activate && pip install torch numpy safetensors
    python3 make_golden.py

writes initial.safetensors, initial-aft.safetensors, inputs.safetensors and one file per case into this script's
folder. The model is
Hugging Face's BERT (Post-LN, exact GELU, no dropout), spelt out below in plain tensor operations: a second,
independent statement of it, from which autograd takes the gradients.

Letters in the shape comments: B sequences, L tokens, D hidden width, N masked tokens, i query, j key,
c channel.
"""

import itertools
import math
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

VOCABULARY, HIDDEN, LAYERS, HEADS, INTERMEDIATE = 29, 16, 2, 2, 24
MAX_POSITIONS, TOKEN_TYPES, CLASSES = 16, 2, 3
LAYER_NORM_EPS = 1e-12

STEPS = 10
# Under SA and AFT the key bias has a gradient of exactly 0, which rounding turns into some 1e-16. Divided by the
# usual eps of 1e-8 that noise shows in the final values at 4e-10; with 1e-4 they repeat to a few 1e-13.
ADAMW = dict(lr=1e-2, betas=(0.9, 0.999), eps=1e-4, weight_decay=0.01)

ATTENTIONS = ("sa", "la", "aft", "ea", "ea-2", "ea-6")


def parameter_shapes():
    """Name -> shape, as in Hugging Face's bert-base-uncased; a linear weight is [out, in]."""
    shapes = {}

    def linear(name, inputs, outputs):
        shapes[f"{name}.weight"] = (outputs, inputs)
        shapes[f"{name}.bias"] = (outputs,)

    def layer_norm(name):
        shapes[f"{name}.weight"] = (HIDDEN,)
        shapes[f"{name}.bias"] = (HIDDEN,)

    shapes["bert.embeddings.word_embeddings.weight"] = (VOCABULARY, HIDDEN)
    shapes["bert.embeddings.position_embeddings.weight"] = (MAX_POSITIONS, HIDDEN)
    shapes["bert.embeddings.token_type_embeddings.weight"] = (TOKEN_TYPES, HIDDEN)
    layer_norm("bert.embeddings.LayerNorm")
    for n in range(LAYERS):
        layer = f"bert.encoder.layer.{n}"
        for projection in ("query", "key", "value"):
            linear(f"{layer}.attention.self.{projection}", HIDDEN, HIDDEN)
        linear(f"{layer}.attention.output.dense", HIDDEN, HIDDEN)
        layer_norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", HIDDEN, INTERMEDIATE)
        linear(f"{layer}.output.dense", INTERMEDIATE, HIDDEN)
        layer_norm(f"{layer}.output.LayerNorm")
    linear("bert.pooler.dense", HIDDEN, HIDDEN)
    linear("cls.predictions.transform.dense", HIDDEN, HIDDEN)
    layer_norm("cls.predictions.transform.LayerNorm")
    shapes["cls.predictions.bias"] = (VOCABULARY,)
    linear("classifier", HIDDEN, CLASSES)
    return shapes


def initial_parameters():
    """Random values, larger than BERT's own so that attention is far from flat."""
    rng = np.random.default_rng(20250111)
    parameters = {}
    for name, shape in parameter_shapes().items():
        normal = rng.standard_normal(shape)
        if name.endswith("LayerNorm.weight"):
            value = 1 + 0.1 * normal
        elif name.endswith("bias"):
            value = 0.1 * normal
        else:
            value = 0.3 * normal
        parameters[name] = torch.from_numpy(value)
    return parameters


def position_biases():
    """What AFT learns besides: a bias for each pair of positions, in each layer."""
    rng = np.random.default_rng(20250112)
    shape = (MAX_POSITIONS, MAX_POSITIONS)
    names = (f"bert.encoder.layer.{n}.attention.self.position_bias" for n in range(LAYERS))
    return {name: torch.from_numpy(0.5 * rng.standard_normal(shape)) for name in names}


def make_inputs():
    """Two sequences of nine tokens, without id 0: Hugging Face gives that embedding row no gradient."""
    return {
        "input_ids": torch.tensor([[2, 17, 4, 9, 17, 4, 28, 11, 3], [2, 6, 23, 9, 1, 4, 14, 26, 3]]),
        "token_type_ids": torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 1, 1, 1]]),
        # True is visible; only the padded cases use it. Sequence 0 is padded on the right, 1 on the left.
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1, 1, 1, 1]]).bool(),
        # Indices into the B*L tokens, round(0.15 B L) of them, all visible in the padded cases.
        "masked_positions": torch.tensor([2, 5, 14]),
        "mlm_labels": torch.tensor([21, 5, 12]),
        "class_labels": torch.tensor([2, 0]),
    }


def attention_weights(attention, q, k, position_bias):
    """Unnormalised weights [B, i, j, c]; the values are small enough for exp to need no shift."""
    if attention in ("sa", "la"):
        head = HIDDEN // HEADS
        q, k = q.unflatten(-1, (HEADS, head)), k.unflatten(-1, (HEADS, head))
        if attention == "sa":
            weights = torch.exp(torch.einsum("bihd,bjhd->bijh", q, k) / math.sqrt(head))
        else:
            weights = torch.einsum("bihd,bjhd->bijh", F.elu(q) + 1, F.elu(k) + 1)
        return weights.repeat_interleave(head, dim=-1)  # the channels of a head share its weight
    if attention == "aft":
        length = q.shape[1]
        return torch.exp(k[:, None, :, :] + position_bias[:length, :length, None])
    q, k = q[:, :, None, :], k[:, None, :, :]
    if attention == "ea":
        return torch.exp(-((q - k) ** 2))
    order = int(attention.removeprefix("ea-"))
    x = 2 * q * k
    polynomial = sum(x**n / math.factorial(n) for n in range(order + 1))
    return torch.exp(-(k**2)) * polynomial


def attend(attention, q, k, v, visible, position_bias=None):
    """Weighted mean of v over the visible keys, channel by channel; 0 for a query that sees none. AFT opens it
    by sigmoid(q).

    visible: bool [B, i, j]. The divisor is replaced where it is 0, so that no 0/0 reaches a gradient.
    """
    weights = attention_weights(attention, q, k, position_bias) * visible[..., None]
    total = weights.sum(dim=2)
    sees_a_key = visible.any(dim=2)[..., None]
    mean = torch.einsum("bijc,bjc->bic", weights, v) / torch.where(sees_a_key, total, 1.0)
    return torch.sigmoid(q) * mean if attention == "aft" else mean


class Bert:
    """The model's functions over one dictionary of parameters."""

    def __init__(self, parameters, attention, causal, padded):
        self.parameters = parameters
        self.attention = attention
        self.causal = causal
        self.padded = padded

    def linear(self, name, x):
        return x @ self.parameters[f"{name}.weight"].T + self.parameters[f"{name}.bias"]

    def layer_norm(self, name, x):
        mean = x.mean(dim=-1, keepdim=True)
        variance = ((x - mean) ** 2).mean(dim=-1, keepdim=True)
        normalised = (x - mean) / torch.sqrt(variance + LAYER_NORM_EPS)
        return normalised * self.parameters[f"{name}.weight"] + self.parameters[f"{name}.bias"]

    @staticmethod
    def gelu(x):
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))

    def embed(self, inputs):
        name = "bert.embeddings"
        length = inputs["input_ids"].shape[1]
        words = self.parameters[f"{name}.word_embeddings.weight"][inputs["input_ids"]]
        positions = self.parameters[f"{name}.position_embeddings.weight"][:length]
        types = self.parameters[f"{name}.token_type_embeddings.weight"][inputs["token_type_ids"]]
        return self.layer_norm(f"{name}.LayerNorm", words + positions + types)

    def visible_keys(self, inputs):
        """bool [B, i, j]: may query i see key j?"""
        batch, length = inputs["input_ids"].shape
        visible = torch.ones(batch, length, length, dtype=torch.bool)
        if self.causal:
            visible &= torch.ones(length, length, dtype=torch.bool).tril()
        if self.padded:
            visible &= inputs["attention_mask"][:, None, :]
        return visible

    def layer(self, name, x, visible):
        q, k, v = (self.linear(f"{name}.attention.self.{p}", x) for p in ("query", "key", "value"))
        position_bias = self.parameters.get(f"{name}.attention.self.position_bias")
        context = attend(self.attention, q, k, v, visible, position_bias)
        attended = self.linear(f"{name}.attention.output.dense", context)
        x = self.layer_norm(f"{name}.attention.output.LayerNorm", x + attended)
        inner = self.gelu(self.linear(f"{name}.intermediate.dense", x))
        transformed = self.linear(f"{name}.output.dense", inner)
        return self.layer_norm(f"{name}.output.LayerNorm", x + transformed)

    def masked_lm_logits(self, x):
        """x: the masked tokens [N, D]; the decoder is the word embedding."""
        name = "cls.predictions"
        decoder = self.parameters["bert.embeddings.word_embeddings.weight"]
        x = self.gelu(self.linear(f"{name}.transform.dense", x))
        x = self.layer_norm(f"{name}.transform.LayerNorm", x)
        return x @ decoder.T + self.parameters[f"{name}.bias"]

    def forward(self, inputs):
        """hidden.0 to hidden.LAYERS [B, L, D], pooled [B, D], loss [1]."""
        visible = self.visible_keys(inputs)
        x = self.embed(inputs)
        outputs = {"hidden.0": x}
        for n in range(LAYERS):
            x = self.layer(f"bert.encoder.layer.{n}", x, visible)
            outputs[f"hidden.{n + 1}"] = x
        outputs["pooled"] = torch.tanh(self.linear("bert.pooler.dense", x[:, 0]))

        masked = x.flatten(0, 1)[inputs["masked_positions"]]
        masked_lm_loss = F.cross_entropy(self.masked_lm_logits(masked), inputs["mlm_labels"])
        class_loss = F.cross_entropy(self.linear("classifier", outputs["pooled"]), inputs["class_labels"])
        outputs["loss"] = (masked_lm_loss + class_loss).reshape(1)
        return outputs


def make_case(initial, inputs, attention, causal, padded):
    """Outputs and gradients at the initial parameters; losses and final parameters of the AdamW steps."""
    parameters = {name: value.clone().requires_grad_() for name, value in initial.items()}
    model = Bert(parameters, attention, causal, padded)
    optimizer = torch.optim.AdamW(parameters.values(), **ADAMW)
    golden, losses = {}, []
    for step in range(STEPS):
        optimizer.zero_grad()
        outputs = model.forward(inputs)
        outputs["loss"].backward()
        losses.append(outputs["loss"].item())
        if step == 0:
            golden.update({name: value.detach().clone() for name, value in outputs.items()})
            golden.update({f"grad.{name}": p.grad.clone() for name, p in parameters.items()})
        optimizer.step()
    golden["losses"] = torch.tensor(losses, dtype=torch.float64)
    golden.update({f"final.{name}": p.detach().clone() for name, p in parameters.items()})
    for name, value in golden.items():
        assert value.isfinite().all(), f"{attention}: {name} is not finite"
    return golden


def case_name(attention, causal, padded):
    return attention + "-causal" * causal + "-padded" * padded


def main():
    torch.set_num_threads(1)
    folder = pathlib.Path(__file__).resolve().parent
    initial, inputs = initial_parameters(), make_inputs()
    save_file(initial, folder / "initial.safetensors")
    save_file(inputs, folder / "inputs.safetensors")
    save_file(position_biases(), folder / "initial-aft.safetensors")
    for attention, causal, padded in itertools.product(ATTENTIONS, (False, True), (False, True)):
        parameters = initial | position_biases() if attention == "aft" else initial
        golden = make_case(parameters, inputs, attention, causal, padded)
        name = case_name(attention, causal, padded)
        save_file(golden, folder / f"{name}.safetensors")
        print(f"{name:20} loss {golden['losses'][0]:.6f}, before step {STEPS}: {golden['losses'][-1]:.6f}")


if __name__ == "__main__":
    main()
