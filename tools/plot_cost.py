#!/usr/bin/env python3
"""Draws what train_bert_cost and infer_bert_cost measured: plot_cost.py FILE... --out DIR writes memory, bs-l and
throughput (figure 4 of arXiv 2501.05730), generation-memory and generation-latency (figure 5), step-memory and
step-latency (of infer_bert_cost --position), each as PNG and SVG, as far as the files have the data.

The files hold one JSON object per line, with or without a sweep's name; where two lines measure the same thing, the
later one counts. Prints the files that it wrote. Exits 2 for bad usage, 1 for a failure.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import pathlib
from typing import Any

from figures import MARKERS, PlotError, color_of, fail, import_matplotlib, read_lines, save

REQUIRED = {"attention": str, "device": str, "dtype": str, "batch": int}
SIZES = ("seq_len", "length", "position")  # of which a line has one
SWEEPS = (None, "memory", "bs-l", "throughput")
BYTES = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}

LINE_STYLES = ["-", "--", ":", "-."]


@dataclasses.dataclass(frozen=True)
class Panel:
    """What a figure shows of the lines."""

    name: str
    title: str
    x: str
    y: str
    x_label: str
    y_label: str
    varies: tuple[str, ...]  # fields that tell series of one attention apart

    def in_bytes(self) -> bool:
        return self.y.endswith("_bytes")

    def in_time(self) -> bool:
        return self.name == "throughput" or self.y == "ms_per_token"


MODEL = ("layers", "hidden", "dtype", "causal", "checkpoint_activations")
PANELS = (
    Panel("memory", "Peak memory of a training step", "seq_len", "peak_bytes", "sequence length (tokens)",
          "peak memory", ("batch", *MODEL)),
    Panel("bs-l", "The longest sequence that fits the memory", "batch", "max_seq_len", "batch size (sequences)",
          "longest sequence (tokens)", ("memory_budget", *MODEL)),
    Panel("throughput", "Training throughput", "seq_len", "tokens_per_s", "sequence length (tokens)",
          "tokens per second", ("batch", "device", "threads", *MODEL)),
    Panel("generation-memory", "What generation keeps of the tokens", "length", "state_bytes", "generated tokens",
          "state", ("batch", *MODEL)),
    Panel("generation-latency", "Latency of generation", "length", "ms_per_token", "generated tokens",
          "milliseconds per token", ("batch", "device", "threads", *MODEL)),
    Panel("step-memory", "What a step finds in memory beside the weights", "position", "state_bytes",
          "tokens before", "state", ("batch", *MODEL)),
    Panel("step-latency", "Latency of one step", "position", "ms_per_token", "tokens before", "milliseconds",
          ("batch", "device", "threads", *MODEL)),
)


def check(line: Any) -> dict[str, Any]:
    """The line, if it is a measurement. Raises PlotError."""
    if not isinstance(line, dict):
        raise PlotError("expected a JSON object")
    for field, kind in REQUIRED.items():
        if not isinstance(line.get(field), kind):
            raise PlotError(f"expected {field} to be {kind.__name__}, got {json.dumps(line.get(field))}")
    sizes = [line.get(field) for field in SIZES if line.get(field) is not None]
    if len(sizes) != 1 or not isinstance(sizes[0], int):
        raise PlotError(f"expected {', '.join(SIZES[:-1])} or {SIZES[-1]} to be int, got {json.dumps(sizes)}")
    if line.get("sweep") not in SWEEPS:
        raise PlotError(f"expected sweep to be memory, bs-l or throughput, got {json.dumps(line['sweep'])}")
    for field in ("peak_bytes", "tokens_per_s", "max_seq_len", "memory_budget", "state_bytes", "ms_per_token"):
        value = line.get(field)
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
        if value is not None and not number:
            raise PlotError(f"expected {field} to be a number, got {json.dumps(value)}")
    return line


def lines_of(panel: Panel, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines that a panel shows: its own sweep's, or else those of runs without a sweep that measured the same."""
    usable = [line for line in lines if line.get(panel.x) and line.get(panel.y)]
    own = [line for line in usable if line.get("sweep") == panel.name]
    return own or [line for line in usable if line.get("sweep") is None]


def differing(panel: Panel, lines: list[dict[str, Any]]) -> list[str]:
    """The fields in which lines of the panel differ."""
    return [field for field in panel.varies if len({line.get(field) for line in lines}) > 1]


def bytes_text(value: float) -> str:
    unit = max((unit for unit in BYTES if value >= BYTES[unit]), key=lambda unit: BYTES[unit], default="KiB")
    return f"{value / BYTES[unit]:.3g} {unit}"


def count_text(value: float) -> str:
    """16384 -> 16k, as lengths are spoken of."""
    for size, suffix in ((2**20, "M"), (2**10, "k")):
        if value >= size and value % size == 0:
            return f"{value // size:.0f}{suffix}"
    return f"{value:.0f}"


def phrase(field: str, value: Any) -> str:
    """How a field is told to a reader."""
    if field in ("causal", "checkpoint_activations"):
        name = {"causal": "causal", "checkpoint_activations": "checkpointed"}[field]
        return name if value else f"not {name}"
    if field == "memory_budget":
        return f"{bytes_text(value)} budget" if value else "no budget"
    if field == "threads":
        return f"{value} threads"
    return {"device": "on {}", "dtype": "{}"}.get(field, field + " {}").format(value)


def subtitle(panel: Panel, lines: list[dict[str, Any]]) -> str:
    """What all lines of a panel share."""
    first, varied = lines[0], differing(panel, lines)
    model = "BERT"
    sizes = (first.get("layers"), first.get("hidden"), first.get("intermediate"))
    if "layers" not in varied and "hidden" not in varied and None not in sizes:
        base = sizes == (12, 768, 3072)
        model = "BERT-base" if base else f"BERT, {sizes[0]} layers, hidden {sizes[1]}"
    parameters = [line["parameters"] for line in lines if line.get("parameters")]
    if parameters and min(parameters) * 1.5 > max(parameters):
        millions = min(parameters) / 1e6
        model += f", {millions:.3g} M parameters" if millions >= 1 else f", {min(parameters)} parameters"
    parts = [model]
    for field in panel.varies:
        value = first.get(field)
        if field in varied or field in ("layers", "hidden") or value is None:
            continue
        if value is not False:
            parts.append(phrase(field, value))
    if not panel.in_time():
        devices = sorted({line["device"] for line in lines})
        parts.append({"meta": "counted on meta", "cpu,meta": "counted on meta, rings: run on cpu"}.get(
            ",".join(devices), "on " + ", ".join(devices)))
    return " · ".join(parts)


@dataclasses.dataclass
class Series:
    """One curve."""

    attention: str
    variant: tuple[Any, ...]  # values of the fields that differ
    points: dict[float, float]

    def xy(self) -> tuple[list[float], list[float]]:
        xs = sorted(self.points)
        return xs, [self.points[x] for x in xs]


def series_of(panel: Panel, lines: list[dict[str, Any]]) -> list[Series]:
    varied = differing(panel, lines)
    found: dict[tuple[Any, ...], Series] = {}
    for line in lines:
        variant = tuple(line.get(field) for field in varied)
        series = found.setdefault((line["attention"], *variant), Series(line["attention"], variant, {}))
        series.points[line[panel.x]] = line[panel.y]
    return list(found.values())


def covered(series: Series, others: list[Series]) -> bool:
    """Whether a curve drawn later mostly lies on this one, so that it must be wide to be seen."""
    for other in others:
        shared = series.points.keys() & other.points.keys()
        if 2 * sum(abs(math.log(series.points[x] / other.points[x])) < 0.02 for x in shared) > len(shared):
            return True
    return False


def draw_series(axes: Any, panel: Panel, all_series: list[Series], varied: list[str]) -> None:
    """The curves, each with its name at its end."""
    variants = list(dict.fromkeys(series.variant for series in all_series))
    labels = []
    for i, series in enumerate(all_series):
        xs, ys = series.xy()
        color = color_of(series.attention)
        wide = covered(series, all_series[i + 1:])
        style = LINE_STYLES[variants.index(series.variant) % len(LINE_STYLES)]
        axes.plot(xs, ys, style, color=color, linewidth=5 if wide else 2, markersize=10 if wide else 6,
                  marker=MARKERS.get(series.attention, "P"), markeredgecolor="white", markeredgewidth=0.8, zorder=3)
        text = ", ".join([series.attention, *(phrase(*pair) for pair in zip(varied, series.variant))])
        if panel.name != "bs-l":  # whose ends are not its point
            text += "  " + (bytes_text(ys[-1]) if panel.in_bytes() else f"{ys[-1]:.3g}")
        labels.append((xs[-1], ys[-1], text, color))
    place_labels(axes, labels)


def place_labels(axes: Any, labels: list[tuple[float, float, str, str]]) -> None:
    """Writes (x, y, text, color) to the right of each point, moved apart where several end at one x."""
    gap = 15  # pixels at 72 dpi: a line of text
    scale = 72 / axes.figure.dpi
    for end in {label[0] for label in labels}:
        column = sorted((label for label in labels if label[0] == end), key=lambda label: label[1])
        heights = [axes.transData.transform((x, y))[1] * scale for x, y, _, _ in column]
        placed = list(heights)
        for _ in range(100):
            for i in range(1, len(placed)):
                overlap = gap - (placed[i] - placed[i - 1])
                if overlap > 1e-3:
                    placed[i] += overlap / 2
                    placed[i - 1] -= overlap / 2
        for (x, y, text, color), height, wanted in zip(column, heights, placed):
            axes.annotate(text, (x, y), xytext=(9, wanted - height), textcoords="offset points", color=color,
                          fontweight="bold", va="center", annotation_clip=False, zorder=4,
                          bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8})


def draw_constant_tokens(axes: Any, all_series: list[Series]) -> None:
    """Curves of batch size times length, which are straight on logarithmic axes."""
    products = [x * y for series in all_series for x, y in series.points.items()]
    low, high = axes.get_xlim()
    bottom, top = axes.get_ylim()
    first, last = math.floor(math.log2(min(products))), math.ceil(math.log2(max(products)))
    for power in range(first, last + 1, max(1, (last - first) // 5)):
        tokens = 2.0**power
        axes.plot([low, high], [tokens / low, tokens / high], color="#BBBBBB", linewidth=1, zorder=1)
        x = max(low, tokens / top) * 1.06
        if x < high * 0.8 and tokens / x > bottom:
            (x0, y0), (x1, y1) = axes.transData.transform([(x, tokens / x), (x * 2, tokens / (x * 2))])
            axes.text(x, tokens / x, f"{count_text(tokens)} tokens", color="#777777", fontsize=8, zorder=2,
                      rotation=math.degrees(math.atan2(y1 - y0, x1 - x0)), rotation_mode="anchor", va="bottom")
    axes.set_xlim(low, high)
    axes.set_ylim(bottom, top)


def log2_axis(axes: Any, which: str, values: list[float], text: Any, room: tuple[float, float]) -> None:
    """A logarithmic axis with ticks at powers of 2, and some room in octaves at both ends."""
    low, high = math.log2(min(values)) - room[0], math.log2(max(values)) + room[1]
    getattr(axes, f"set_{which}scale")("log", base=2)
    getattr(axes, f"set_{which}lim")(2.0**low, 2.0**high)
    step = max(1, math.ceil((high - low) / 12))
    ticks = [2.0**power for power in range(max(0, math.ceil(low)), math.floor(high) + 1, step)]
    axis = getattr(axes, f"{which}axis")
    axis.set_ticks(ticks, labels=[text(tick) for tick in ticks])
    axis.set_ticks([], minor=True)


def draw(pyplot: Any, panel: Panel, lines: list[dict[str, Any]]) -> Any:
    predicted = [line for line in lines if line["device"] == "meta"] if panel.name == "bs-l" else lines
    all_series = series_of(panel, predicted or lines)
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    xs = [x for series in all_series for x in series.points]
    ys = [y for series in all_series for y in series.points.values()]
    more = 0.8 if panel.name == "bs-l" else 0  # room to name the curves of constant tokens
    log2_axis(axes, "x", xs, count_text, (0.3 + more, 0.3))
    if panel.in_time():
        axes.set_ylim(0, 1.15 * max(ys))
    else:
        log2_axis(axes, "y", ys, bytes_text if panel.in_bytes() else count_text, (0.8, 0.5 + more))
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    axes.grid(True, color="#E5E5E5", linewidth=0.8, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(panel.title, loc="left", fontweight="bold", fontsize=13, pad=22)
    axes.annotate(subtitle(panel, lines), (0, 1), xytext=(0, 8), xycoords="axes fraction",
                  textcoords="offset points", fontsize=9, color="#444444")
    figure.canvas.draw()  # lays it out, so that labels know where the points are
    if panel.name == "bs-l":
        draw_constant_tokens(axes, all_series)
        for line in lines:
            if line["device"] != "meta":
                axes.plot(line[panel.x], line[panel.y], "o", markersize=15, markerfacecolor="none",
                          markeredgecolor="black", markeredgewidth=1.2, zorder=5)
    draw_series(axes, panel, all_series, differing(panel, lines))
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(prog="plot_cost", description=__doc__)
    parser.add_argument("files", nargs="+", type=pathlib.Path, metavar="FILE",
                        help="JSON lines of train_bert_cost or infer_bert_cost")
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR", help="folder for the figures")
    arguments = parser.parse_args()
    try:
        lines = [line for path in arguments.files for line in read_lines(path, check)]
        panels = [(panel, shown) for panel in PANELS if (shown := lines_of(panel, lines))]
        if not panels:
            raise PlotError(f"nothing to draw in {', '.join(map(str, arguments.files))}")
        pyplot = import_matplotlib()
        arguments.out.mkdir(parents=True, exist_ok=True)
        for panel, shown in panels:
            figure = draw(pyplot, panel, shown)
            for suffix in (".png", ".svg"):
                save(figure, arguments.out / (panel.name + suffix))
                print(arguments.out / (panel.name + suffix))
            pyplot.close(figure)
    except PlotError as error:
        fail(str(error))
    except OSError as error:
        fail(f"cannot write {arguments.out}: {error.strerror or error}")


if __name__ == "__main__":
    main()
