#!/usr/bin/env python3
"""Draws what train_recall measured: plot_recall.py FILE... --out DIR writes DIR/recall.png and .svg, a panel for each
task: the accuracy of each attention against the number of pairs at each length (or against the length, where every
result is of as many pairs), its mean over the seeds with the least and the most.

The files hold one JSON object per line, those of several runs of train_recall together; lines with a test_accuracy and
a seed count. Prints the files that it wrote. Exits 2 for bad usage, 1 for a failure.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator
from typing import Any

from figures import COLORS, MARKERS, PlotError, color_of, run

REQUIRED = {"attention": str, "task": str, "length": int, "pairs": int, "seed": int, "chance": float,
            "test_accuracy": (int, float)}
TITLES = {"mqar": "Multi-query associative recall", "copy": "Selective copying", "induction": "Induction heads"}


def is_result(line: dict[str, Any]) -> bool:
    """Of a run: guesses have no seed."""
    return "test_accuracy" in line and "seed" in line


def check(line: Any) -> dict[str, Any]:
    """The line, if train_recall may have written it. Raises PlotError."""
    if not isinstance(line, dict):
        raise PlotError("expected a JSON object")
    for field, kind in REQUIRED.items() if is_result(line) else ():
        if not isinstance(line.get(field), kind):
            raise PlotError(f"unexpected {field}: {json.dumps(line.get(field))}")
    return line


def in_order(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Each name once, the known ones first: figures of other runs, read in any order, look alike."""
    given = dict.fromkeys(names)
    return [name for name in known if name in given] + [name for name in given if name not in set(known)]


def distinct(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each run once. Raises PlotError for two of a task, attention, size and seed: of other settings, that is."""
    runs: dict[tuple[Any, ...], dict[str, Any]] = {}
    for result in results:
        key = tuple(result[field] for field in ("task", "attention", "length", "pairs", "seed"))
        if runs.setdefault(key, result)["test_accuracy"] != result["test_accuracy"]:
            raise PlotError("two results of {}, {}, length {}, pairs {}, seed {}: draw runs with other settings by "
                            "themselves".format(*key))
    return list(runs.values())


def guess_among_seen(result: dict[str, Any]) -> float | None:
    """The accuracy of one who knows which values a sequence has, but not which is asked for."""
    if result["task"] == "induction":
        return None
    by_luck = 1 / result["pairs"]
    return by_luck if result["task"] == "mqar" else by_luck + (1 - by_luck) * result["chance"]


def draw_curves(axes: Any, results: list[dict[str, Any]], groups: list[dict[tuple[int, int], float]]) -> None:
    """One curve for each attention in each group of places, beside one another: they may be equal."""
    attentions = in_order((result["attention"] for result in results), COLORS)
    for number, attention in enumerate(attentions):
        points: dict[tuple[int, int], list[float]] = {}
        for result in results:
            if result["attention"] == attention:
                points.setdefault((result["length"], result["pairs"]), []).append(result["test_accuracy"])
        aside = (number - (len(attentions) - 1) / 2) * min(0.08, 0.6 / len(attentions))
        label = attention
        for group in groups:
            own = [points[condition] for condition in group if condition in points]
            if not own:
                continue
            xs = [x + aside for condition, x in group.items() if condition in points]
            ys = [statistics.fmean(values) for values in own]
            bars = [[y - min(values) for y, values in zip(ys, own)], [max(values) - y for y, values in zip(ys, own)]]
            axes.errorbar(xs, ys, yerr=bars, color=color_of(attention), marker=MARKERS.get(attention, "P"),
                          linewidth=1.6, elinewidth=1, capsize=2.5, markersize=6, markeredgecolor="white",
                          markeredgewidth=0.6, label=label, clip_on=False, zorder=3)
            label = None


def draw_guesses(axes: Any, results: list[dict[str, Any]], places: dict[tuple[int, int], float]) -> None:
    for name, style, guess in (("a guess among the values seen", "--", guess_among_seen),
                               ("a guess among all values", ":", lambda result: result["chance"])):
        heights = {places[result["length"], result["pairs"]]: guess(result) for result in results}
        for x, height in heights.items():
            if height is not None:
                axes.plot([x - 0.45, x + 0.45], [height] * 2, style, color="#777777", linewidth=1.2, label=name,
                          zorder=2)


def draw_panel(axes: Any, results: list[dict[str, Any]]) -> None:
    """A task: a place for each condition, those of one length side by side and connected."""
    conditions = sorted({(result["length"], result["pairs"]) for result in results})
    against_length = len({pairs for _, pairs in conditions}) == 1
    groups: list[dict[tuple[int, int], float]] = []
    x, last = 0.0, None
    for condition in conditions:
        if last is None or not against_length and condition[0] != last:
            groups.append({})
            x += 0.5
        groups[-1][condition] = x
        x, last = x + 1, condition[0]
    places = {condition: x for group in groups for condition, x in group.items()}
    draw_guesses(axes, results, places)
    draw_curves(axes, results, groups)
    axes.set_xticks(list(places.values()), labels=[str(size[0 if against_length else 1]) for size in places])
    if against_length:
        axes.set_xlabel("sequence length (tokens)")
    else:
        axes.set_xlabel("pairs", labelpad=22)
        for group in groups:
            axes.text(statistics.fmean(group.values()), -0.12, f"length {next(iter(group))[0]}", ha="center", va="top",
                      fontsize=9, transform=axes.get_xaxis_transform())
    axes.set_ylim(0, 1)
    axes.set_ylabel("accuracy on test queries")
    title = TITLES.get(results[0]["task"], results[0]["task"])
    pairs = conditions[0][1]
    axes.set_title(f"{title}, {pairs} pairs" if against_length and pairs > 1 else title, loc="left", fontweight="bold",
                   fontsize=10)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def sizes_text(results: list[dict[str, Any]]) -> str:
    """What the runs have in common, "2 layers · 64 channels", and their seeds."""
    parts = []
    for field, text in (("layers", "{} layers"), ("hidden", "{} channels"), ("vocabulary", "vocabulary {}")):
        values = sorted({result[field] for result in results if field in result})
        if values:
            parts.append(text.format(" or ".join(map(str, values))))
    seeds = len({result["seed"] for result in results})
    return " · ".join([*parts, f"{seeds} seeds: mean, least and most" if seeds > 1 else "1 seed"])


def draw(pyplot: Any, results: list[dict[str, Any]]) -> Any:
    tasks = in_order((result["task"] for result in results), TITLES)
    widest = max(len({(result["length"], result["pairs"]) for result in results if result["task"] == task})
                 for task in tasks)
    figure, all_axes = pyplot.subplots(len(tasks), 1, figsize=(max(7.5, 0.75 * widest + 3.5), 3.6 * len(tasks) + 0.4),
                                       squeeze=False, layout="constrained")
    names: dict[str, Any] = {}
    for axes, task in zip(all_axes[:, 0], tasks):
        draw_panel(axes, [result for result in results if result["task"] == task])
        for handle, name in zip(*axes.get_legend_handles_labels()):
            names.setdefault(name, handle)
    all_axes[0][0].legend(names.values(), names.keys(), loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    figure.suptitle(sizes_text(results), fontsize=10)
    return figure


def figures_of(pyplot: Any, lines: list[dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    results = distinct([line for line in lines if is_result(line)])
    if results:
        yield "recall", draw(pyplot, results)


if __name__ == "__main__":
    run(__doc__, check, figures_of)
