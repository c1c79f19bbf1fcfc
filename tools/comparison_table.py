"""The table of compare_pytorch.py: what has been measured, its medians, and Markdown."""

import argparse
import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

SIDES = {"elwise": "Elwise", "eager": "PyTorch eager", "compiled": "PyTorch compiled"}


@dataclasses.dataclass
class Configuration:
    """One row of the table and what has been measured for it."""

    attention: str
    dtype: str
    length: int  # tokens of a training step's sequence, or before a step of generation
    batch: int
    pairs: list[dict[str, dict[str, Any]]] = dataclasses.field(default_factory=list)  # side -> measurement
    failed: dict[str, str] = dataclasses.field(default_factory=dict)  # side -> why

    def __str__(self) -> str:
        return f"{self.attention} {self.dtype} batch {self.batch} length {self.length}"

    def median(self, side: str, field: str) -> float | None:
        values = [pair[side][field] for pair in self.pairs if side in pair]
        return statistics.median(values) if values else None


def gibibytes(count: float) -> str:
    return f"{count / 2**30:.2f} GiB"


def median_ratio(configuration: Configuration, other: Configuration, side: str, field: str) -> str:
    """Elwise's `field` over that of another row's side, within pairs of the same number."""
    ratios = [own["elwise"][field] / theirs[side][field] for own, theirs in zip(configuration.pairs, other.pairs)
              if "elwise" in own and side in theirs]
    return f"{statistics.median(ratios):.2f}" if ratios else "-"


def softmax_rival(configuration: Configuration,
                  configurations: list[Configuration]) -> tuple[Configuration, str] | None:
    """The row and side of PyTorch's fastest scaled_dot_product_attention at the row's sizes and dtype."""
    rivals = [(speed, row, side) for row in configurations for side in SIDES if side != "elwise"
              if row.attention == "sa" and dataclasses.astuple(row)[1:4] == dataclasses.astuple(configuration)[1:4]
              if (speed := row.median(side, "tokens_per_s"))]
    return max(rivals, key=lambda rival: rival[0])[1:] if rivals else None


def table(configurations: list[Configuration], compiled: bool, place: str) -> str:
    """The Markdown table; every cell is a median over pairs. `place` heads the column of lengths. Where PyTorch's SA
    was measured beside other attentions, each row is also set against the faster of its eager and compiled form."""
    sides = [side for side in SIDES if side != "compiled" or compiled]
    rivals = [softmax_rival(configuration, configurations) for configuration in configurations]
    has_rivals = any(rivals) and any(configuration.attention != "sa" for configuration in configurations)
    header = ["attention", "dtype", "batch", place]
    speed_text: Callable[[float], str] = ("{:.1f}" if place == "position" else "{:.0f}").format
    quantities = (("tokens/s", "speed", "tokens_per_s", speed_text), ("peak", "peak", "peak_bytes", gibibytes))
    for unit, quantity, _, _ in quantities:
        for side in sides:
            header.append(f"{SIDES[side]} {unit}")
            header += [f"{quantity}: Elwise / {side}"] * (side != "elwise")
        header += [f"{quantity}: Elwise / PyTorch's sa"] * has_rivals
    rows = [header, ["---", "---"] + ["---:"] * (len(header) - 2)]
    for configuration, rival in zip(configurations, rivals):
        row = [configuration.attention, configuration.dtype, str(configuration.batch), str(configuration.length)]
        for _, _, field, text in quantities:
            for side in sides:
                value = configuration.median(side, field)
                row.append("fails" if side in configuration.failed else "-" if value is None else text(value))
                row += [median_ratio(configuration, configuration, side, field)] * (side != "elwise")
            row += [median_ratio(configuration, *rival, field) if rival else "-"] * has_rivals
        rows.append(row)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def describe(options: argparse.Namespace, version: str, configurations: list[Configuration]) -> str:
    """What holds for the whole table, in one line."""
    causal = ", causal" if options.causal else ""
    in_backward = ", in backward" * options.step_in_backward
    optimizer = "a step of generation" if options.generate else f"AdamW: {options.optimizer}{in_backward}"
    if options.device != "cpu":
        return (f"PyTorch {version}, {options.device}{', TF32' * options.tf32}{causal}; {optimizer}; peak: of "
                f"tensors; medians of {options.pairs} pairs of {options.steps} steps")
    bare = [value for configuration in configurations
            if (value := configuration.median("eager", "after_import_rss_bytes"))]
    without_model = f" ({gibibytes(statistics.median(bare))} of PyTorch's after its import)" if bare else ""
    return (f"PyTorch {version}, {options.threads} threads{causal}; {optimizer}; "
            f"malloc: {options.malloc}; peak: of the whole process{without_model}; medians of {options.pairs} pairs of "
            f"{options.steps} steps")
