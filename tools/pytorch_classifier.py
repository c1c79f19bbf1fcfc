#!/usr/bin/env python3
"""The classifier of time series of models/classifier.h in PyTorch, and the time an epoch of it takes beside Elwise's.

    venv/bin/python tools/pytorch_classifier.py --train X_TRAIN.ts --test X_TEST.ts --attention ea-6,sa --threads 1

trains both, in turn, a process per measurement, and prints a Markdown table: the median over epochs of the seconds
that training takes (forward, backward, clipping, RAdam; no validation), and the best test accuracy of those epochs.
EA is composed of tensor operations as in figure 2 of arXiv 2501.05730, SA is scaled_dot_product_attention. As in the
Time Series Library attention sees padding, which Elwise's does not. Files without missing values only.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, NoReturn

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROGRAM = ROOT / "build/release/tools/train_classifier"
EPS = sys.float_info.epsilon


def fail(message: str) -> NoReturn:
    print(f"pytorch_classifier: {message}", file=sys.stderr)
    sys.exit(1)


try:
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn

    from pytorch_bert import ea, ea_series
except ImportError as error:
    fail(f"PyTorch is missing ({error}): python3 -m venv DIR && DIR/bin/pip install torch, then DIR/bin/python")


class SelfAttention(nn.Module):
    """Projections, a mechanism by its name, the output projection: x [B, L, D] -> [B, L, D]."""

    def __init__(self, attention: str, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention, self.heads, self.dropout = attention, heads, dropout
        self.value, self.output = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        if attention != "none":
            self.query, self.key = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)

    def mix(self, x: Tensor, v: Tensor) -> Tensor:
        if self.attention == "none":
            return v
        q, k = self.query(x), self.key(x)
        if self.attention == "ea":
            return ea(q, k, v, causal=False)
        if self.attention != "sa":
            return ea_series(q, k, v, int(self.attention.removeprefix("ea-")), causal=False)
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return mixed.transpose(1, 2).flatten(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.mix(x, self.value(x)))


class EncoderLayer(nn.Module):
    """Post-LN: x [B, L, D] -> [B, L, D]."""

    def __init__(self, attention: str, hidden: int, heads: int, intermediate: int, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(attention, hidden, heads, dropout)
        self.inner, self.outer = nn.Linear(hidden, intermediate), nn.Linear(intermediate, hidden)
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.dropout(self.attention(x)))
        return self.norm2(x + self.dropout(self.outer(self.dropout(F.gelu(self.inner(x))))))


class Classifier(nn.Module):
    """x [B, L, C], mask [B, L] -> logits [B, classes]."""

    def __init__(self, options: argparse.Namespace, attention: str, inputs: int, classes: int, length: int) -> None:
        super().__init__()
        hidden = options.hidden
        self.mean = options.pooling == "mean"
        self.tokens = nn.Conv1d(inputs, hidden, 3, padding=1, padding_mode="circular", bias=False)
        nn.init.kaiming_normal_(self.tokens.weight, mode="fan_in", nonlinearity="leaky_relu")
        position = torch.arange(length)[:, None] * torch.exp(torch.arange(0, hidden, 2) * (-math.log(1e4) / hidden))
        self.register_buffer("positions", torch.stack([position.sin(), position.cos()], 2).flatten(1))
        self.layers = nn.Sequential(*(EncoderLayer(attention, hidden, options.heads, options.intermediate,
                                                   options.dropout) for _ in range(options.layers)))
        self.norm, self.dropout = nn.LayerNorm(hidden), nn.Dropout(options.dropout)
        self.classes = nn.Linear(hidden if self.mean else length * hidden, classes)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.dropout(self.tokens(x.transpose(1, 2)).transpose(1, 2) + self.positions[:x.size(1)])
        x = self.dropout(F.gelu(self.norm(self.layers(x)))) * mask[:, :, None]
        return self.classes(x.sum(1) / mask.sum(1, keepdim=True) if self.mean else x.flatten(1))


def read_ts(path: pathlib.Path) -> tuple[list[Tensor], list[str]]:
    """Series [length, dimensions] and their labels."""
    series, labels = [], []
    try:
        body = path.read_text(encoding="utf-8").lower().split("@data", 1)[1]
        for line in body.split("\n"):
            if line.strip() and not line.startswith("#"):
                *dimensions, label = line.strip().split(":")
                values = [[float(value) for value in dimension.split(",")] for dimension in dimensions]
                series.append(torch.tensor(values, dtype=torch.float64).T)
                labels.append(label.strip("\"' "))
    except (OSError, UnicodeDecodeError) as problem:
        fail(f"cannot read {path}: {problem}")
    except (IndexError, ValueError) as problem:
        fail(f"{path}: {problem}")
    return series, labels


def load(path: pathlib.Path, length: int, classes: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Values [n, length, dimensions], standardised over the file as TSL does and padded, mask and labels."""
    series, labels = read_ts(path)
    rows = torch.cat(series)
    mean, deviation = rows.mean(0), rows.std(0) + EPS
    x = torch.zeros(len(series), length, rows.size(1))
    mask = torch.zeros(len(series), length)
    for i, values in enumerate(series):
        x[i, :len(values)] = (values - mean) / deviation
        mask[i, :len(values)] = 1
    return x, mask, torch.tensor([classes.index(label) for label in labels])


def train(options: argparse.Namespace, attention: str) -> dict[str, Any]:
    """Trains in this process."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    (train_series, labels), (test_series, _) = read_ts(options.train), read_ts(options.test)
    classes = sorted(set(labels))
    length = max(map(len, train_series + test_series))
    x, mask, y = load(options.train, length, classes)
    test_x, test_mask, test_y = load(options.test, length, classes)
    model = Classifier(options, attention, x.size(2), len(classes), length)
    optimizer = torch.optim.RAdam(model.parameters(), lr=options.learning_rate)
    seconds, best = [], 0.0
    for _ in range(options.epochs):
        model.train()
        start = time.perf_counter()
        for batch in torch.randperm(len(y)).split(options.batch):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[batch], mask[batch]), y[batch])
            loss.item()  # as Elwise, which checks that it is finite
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), options.clip or math.inf)
            optimizer.step()
        seconds.append(time.perf_counter() - start)
        model.eval()
        with torch.no_grad():
            right = sum((model(a, b).argmax(1) == c).sum().item()
                        for a, b, c in zip(test_x.split(64), test_mask.split(64), test_y.split(64)))
        best = max(best, right / len(test_y))
    return {"seconds": statistics.median(seconds[1:] or seconds), "accuracy": best}


def run(command: list[str]) -> str:
    try:
        ended = subprocess.run(command, capture_output=True, text=True)
    except OSError as problem:
        fail(f"cannot run {command[0]}: {problem.strerror}")
    if ended.returncode != 0:
        fail((ended.stderr.strip().splitlines() or ["no message"])[-1])
    return ended.stdout


def measure_elwise(options: argparse.Namespace, attention: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        lines = pathlib.Path(folder) / "lines.json"
        flags = {name: getattr(options, name) for name in
                 ("train", "test", "hidden", "layers", "heads", "intermediate", "dropout", "pooling", "batch",
                  "learning_rate", "clip", "epochs", "threads")}
        arguments = [part for name, value in flags.items() for part in ("--" + name.replace("_", "-"), str(value))]
        run([str(options.program), *arguments, "--attention", attention, "--patience", str(options.epochs),
             "--validation", "test", "--normalize", "split", "--quiet", "--json", str(lines)])
        epochs = [line for line in map(json.loads, lines.read_text().splitlines()) if "epoch" in line]
    seconds = [line["training_seconds"] for line in epochs]
    return {"seconds": statistics.median(seconds[1:] or seconds),
            "accuracy": max(line["validation_accuracy"] for line in epochs)}


def measure_pytorch(attention: str) -> dict[str, Any]:
    return json.loads(run([sys.executable, __file__, *sys.argv[1:], "--worker", attention]))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="pytorch_classifier", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=pathlib.Path, required=True, help=".ts file")
    parser.add_argument("--test", type=pathlib.Path, required=True, help=".ts file")
    parser.add_argument("--attention", default="ea-6,sa", help="sa, ea, ea-N, none (default: %(default)s)")
    parser.add_argument("--pooling", choices=["flatten", "mean"], default="flatten")
    for name, value in {"hidden": 128, "layers": 3, "heads": 8, "intermediate": 256, "batch": 16, "epochs": 8,
                        "threads": 1, "pairs": 3}.items():
        parser.add_argument("--" + name, type=int, default=value, help="default: %(default)s")
    for name, number in {"dropout": 0.1, "learning-rate": 1e-3, "clip": 4.0}.items():
        parser.add_argument("--" + name, type=float, default=number, help="default: %(default)s")
    parser.add_argument("--program", type=pathlib.Path, default=PROGRAM, help="train_classifier")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.worker:
        print(json.dumps(train(options, options.worker)))
        return
    print("| attention | threads | Elwise s/epoch | PyTorch s/epoch | speed: Elwise / PyTorch | Elwise accuracy "
          "| PyTorch accuracy |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for attention in options.attention.split(","):
        pairs = [(measure_elwise(options, attention), measure_pytorch(attention)) for _ in range(options.pairs)]
        ours, theirs = (statistics.median(pair[side]["seconds"] for pair in pairs) for side in (0, 1))
        print(f"| {attention} | {options.threads} | {ours:.3f} | {theirs:.3f} | {theirs / ours:.2f} "
              f"| {pairs[0][0]['accuracy']:.4f} | {pairs[0][1]['accuracy']:.4f} |", flush=True)


if __name__ == "__main__":
    main()
