#!/usr/bin/env python3
"""Draws what train_classifier and its sisters found: plot_experiment.py FILE... --out DIR writes learning-curves
(loss and validation score of each epoch, a thin line per run, the mean over runs thick) and, where the runs tell
which classes they took for which, confusion-ATTENTION, each as PNG and SVG.

The files hold one JSON object per line: of epochs ("epoch") and of finished runs ("epochs"). Prints the files that it
wrote. Exits 2 for bad usage, 1 for a failure.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

from figures import PlotError, color_of, fail, import_matplotlib, read_lines, save

FEW_CLASSES = 20  # whose cells have room for a number


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check(line: Any) -> dict[str, Any]:
    """The line, if an experiment may have written it. Raises PlotError."""
    if not isinstance(line, dict):
        raise PlotError("expected a JSON object")
    if not isinstance(line.get("attention"), str):
        raise PlotError(f"expected attention to be a string, got {json.dumps(line.get('attention'))}")
    if "epoch" in line and not is_number(line["epoch"]):
        raise PlotError(f"expected epoch to be a number, got {json.dumps(line['epoch'])}")
    confusion = line.get("confusion")
    if confusion is not None:
        labels = line.get("labels")
        rows = confusion if isinstance(confusion, list) else []
        fits = isinstance(labels, list) and len(rows) == len(labels) and all(
            isinstance(row, list) and len(row) == len(rows) and all(map(is_number, row)) for row in rows)
        if not fits:
            raise PlotError("expected confusion to be a square of numbers, a row for each of labels")
    return line


def words(field: str) -> str:
    return field.replace("_", " ")


def curve_fields(epochs: list[dict[str, Any]]) -> list[str]:
    """The loss and the validation's numbers, in the order of the lines."""
    fields = dict.fromkeys(field for line in epochs for field, value in line.items() if is_number(value))
    return [field for field in fields if field == "training_loss" or field.startswith("validation_")]


def runs_of(epochs: list[dict[str, Any]], field: str) -> dict[str, list[dict[int, float]]]:
    """By attention, each run's values by epoch. A run's epochs come one after another."""
    runs: dict[str, list[dict[int, float]]] = {}
    for line in epochs:
        of_attention = runs.setdefault(line["attention"], [])
        if not of_attention or line["epoch"] <= max(of_attention[-1], default=0):
            of_attention.append({})
        if is_number(line.get(field)):
            of_attention[-1][line["epoch"]] = line[field]
    return runs


def mean_curve(runs: list[dict[int, float]]) -> tuple[list[int], list[float]]:
    """As far as at least half of the runs went: beyond, a few would pass for all."""
    means = {}
    for epoch in sorted({epoch for run in runs for epoch in run}):
        values = [run[epoch] for run in runs if epoch in run]
        if 2 * len(values) >= len(runs):
            means[epoch] = sum(values) / len(values)
    return list(means), list(means.values())


def draw_learning_curves(pyplot: Any, epochs: list[dict[str, Any]]) -> Any:
    fields = curve_fields(epochs)
    figure, all_axes = pyplot.subplots(1, len(fields), figsize=(5.5 * len(fields), 4.5), layout="constrained",
                                       squeeze=False)
    for axes, field in zip(all_axes[0], fields):
        for attention, runs in runs_of(epochs, field).items():
            color = color_of(attention)
            for run in runs:
                axes.plot(list(run), list(run.values()), color=color, linewidth=0.7, alpha=0.35, zorder=2)
            count = f" ({len(runs)} runs)" if len(runs) > 1 else ""
            axes.plot(*mean_curve(runs), color=color, linewidth=2.2, label=attention + count, zorder=3)
        axes.set_xlabel("epoch")
        axes.set_title(words(field), loc="left", fontweight="bold")
        if field.endswith("_loss"):
            axes.set_yscale("log")
        axes.grid(True, color="#E5E5E5", linewidth=0.8, zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0][-1].legend(frameon=False)
    return figure


def draw_confusion(pyplot: Any, attention: str, lines: list[dict[str, Any]]) -> Any:
    """The counts of all runs together; a cell is as dark as its share of its row."""
    labels = [str(label) for label in lines[0]["labels"]]
    counts = [[sum(line["confusion"][i][j] for line in lines) for j in range(len(labels))] for i in range(len(labels))]
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    size = max(4.0, 0.45 * len(labels) + 2) if len(labels) <= FEW_CLASSES else 8.0
    figure, axes = pyplot.subplots(figsize=(size, size), layout="constrained")
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(labels) <= FEW_CLASSES:
        ticks = range(len(labels))
        axes.set_xticks(ticks, labels=labels, rotation=0 if max(map(len, labels)) < 4 else 90)
        axes.set_yticks(ticks, labels=labels)
        for i, row in enumerate(counts):
            for j, count in enumerate(row):
                if count:
                    axes.text(j, i, f"{count:g}", ha="center", va="center", fontsize=8,
                              color="white" if shares[i][j] > 0.5 else "black")
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    right = sum(counts[i][i] for i in range(len(labels))) / max(1, sum(map(sum, counts)))
    axes.set_title(f"{attention}: {100 * right:.1f} % right, {len(lines)} run{'s' if len(lines) > 1 else ''}",
                   loc="left", fontweight="bold")
    return figure


def figures_of(pyplot: Any, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Each figure by its name."""
    figures = {}
    epochs = [line for line in lines if "epoch" in line]
    if curve_fields(epochs):
        figures["learning-curves"] = draw_learning_curves(pyplot, epochs)
    confused: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        if line.get("confusion") is not None:
            confused.setdefault(line["attention"], []).append(line)
    for attention, own in confused.items():
        if any(line["labels"] != own[0]["labels"] for line in own):
            raise PlotError(f"the runs of {attention} have different labels: draw one data set at a time")
        figures[f"confusion-{attention}"] = draw_confusion(pyplot, attention, own)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(prog="plot_experiment", description=__doc__)
    parser.add_argument("files", nargs="+", type=pathlib.Path, metavar="FILE", help="JSON lines of an experiment")
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR", help="folder for the figures")
    arguments = parser.parse_args()
    try:
        lines = [line for path in arguments.files for line in read_lines(path, check)]
        figures = figures_of(import_matplotlib(), lines)
        if not figures:
            raise PlotError(f"nothing to draw in {', '.join(map(str, arguments.files))}")
        arguments.out.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            for suffix in (".png", ".svg"):
                save(figure, arguments.out / (name + suffix))
                print(arguments.out / (name + suffix))
    except PlotError as error:
        fail(str(error))
    except OSError as error:
        fail(f"cannot write {arguments.out}: {error.strerror or error}")


if __name__ == "__main__":
    main()
