#!/usr/bin/env python3
"""Draws what train_classifier and its sisters found: plot_experiment.py FILE... --out DIR writes learning-curves
(loss and validation score of each epoch, a thin line per run, the mean over runs thick; of runs under several
conditions one for each, learning-curves-horizon-6), where the runs tell which classes they took for which,
confusion-ATTENTION, and where they show forecasts, forecast-HORIZON, each as PNG and SVG.

The files hold one JSON object per line: of epochs ("epoch") and of finished runs ("epochs"). Prints the files that it
wrote. Exits 2 for bad usage, 1 for a failure.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from figures import PlotError, color_of, run

CONDITIONS = ("horizon", "length", "pairs")  # what runs of one experiment may differ in, beside attention and seed
FEW_CLASSES = 20  # whose cells have room for a number


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_shown(shown: Any) -> None:
    """Raises PlotError unless this is a stretch of truth and forecasts."""
    fits = isinstance(shown, dict) and is_number(shown.get("steps_ahead")) and all(
        isinstance(shown.get(field), list) for field in ("time", "truth", "forecast"))
    if not fits or not len(shown["time"]) == len(shown["truth"]) == len(shown["forecast"]) > 0:
        raise PlotError("expected shown to have steps_ahead and as many of time, truth and forecast")
    if not all(map(is_number, shown["truth"] + shown["forecast"])):
        raise PlotError("expected shown to have numbers as truth and forecast")


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
    if line.get("shown") is not None:
        check_shown(line["shown"])
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


def by_condition(epochs: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The lines of each condition, under its name: "length 64, pairs 4"; "" where there is but one."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for line in epochs:
        name = ", ".join(f"{field} {line[field]}" for field in CONDITIONS if field in line)
        groups.setdefault(name, []).append(line)
    return groups if len(groups) > 1 else {"": epochs}


def draw_learning_curves(pyplot: Any, epochs: list[dict[str, Any]], condition: str) -> Any:
    fields = curve_fields(epochs)
    figure, all_axes = pyplot.subplots(1, len(fields), figsize=(5.5 * len(fields), 4.5), layout="constrained",
                                       squeeze=False)
    for axes, field in zip(all_axes[0], fields):
        for attention, runs in runs_of(epochs, field).items():
            color = color_of(attention)
            for run in runs:
                axes.plot(list(run), list(run.values()), color=color, linewidth=0.7, alpha=0.35, zorder=2)
            count = f" ({len(runs)} runs)" if len(runs) > 1 else ""
            mean = mean_curve(runs)
            axes.plot(*mean, color=color, linewidth=2.2, marker="o" if len(mean[0]) == 1 else None,
                      label=attention + count, zorder=3)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_title(words(field), loc="left", fontweight="bold")
        if field.endswith("_loss"):
            axes.set_yscale("log")
        axes.grid(True, color="#E5E5E5", linewidth=0.8, zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[0][-1].legend(frameon=False)
    figure.suptitle(condition, fontsize=11)
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


def draw_forecast(pyplot: Any, lines: list[dict[str, Any]]) -> Any:
    """The truth, and the forecasts of each attention's first run."""
    first = lines[0]["shown"]
    figure, axes = pyplot.subplots(figsize=(11, 4.5), layout="constrained")
    axes.plot(first["truth"], color="black", linewidth=2, label="truth", zorder=2)
    for attention in dict.fromkeys(line["attention"] for line in lines):
        run = next(line for line in lines if line["attention"] == attention)
        label = f"{attention}, seed {run['seed']}" if "seed" in run else attention
        axes.plot(run["shown"]["forecast"], color=color_of(attention), linewidth=1.3, label=label, zorder=3)
    count = len(first["time"])
    ticks = range(0, count, max(1, count // 7))
    axes.set_xticks(ticks, labels=[str(first["time"][tick]) for tick in ticks], rotation=20, ha="right")
    axes.set_title(f"test rows, each forecast {first['steps_ahead']:g} rows before", loc="left", fontweight="bold")
    if "target" in lines[0]:
        axes.set_ylabel(str(lines[0]["target"]))
    axes.grid(True, color="#E5E5E5", linewidth=0.8, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.18))
    return figure


def figures_of(pyplot: Any, lines: list[dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    epochs = [line for line in lines if "epoch" in line]
    if curve_fields(epochs):
        for condition, own in by_condition(epochs).items():
            words_of = condition.replace(",", "").split()
            yield "-".join(["learning-curves", *words_of]), draw_learning_curves(pyplot, own, condition)
    confused: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        if line.get("confusion") is not None:
            confused.setdefault(line["attention"], []).append(line)
    for attention, own in confused.items():
        if any(line["labels"] != own[0]["labels"] for line in own):
            raise PlotError(f"the runs of {attention} have different labels: draw one data set at a time")
        yield f"confusion-{attention}", draw_confusion(pyplot, attention, own)
    forecasts = [line for line in lines if line.get("shown") is not None]
    for steps in dict.fromkeys(line["shown"]["steps_ahead"] for line in forecasts):
        own = [line for line in forecasts if line["shown"]["steps_ahead"] == steps]
        yield f"forecast-{steps}", draw_forecast(pyplot, own)


if __name__ == "__main__":
    run(__doc__, check, figures_of)
