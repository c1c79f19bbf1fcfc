#!/usr/bin/env python3
"""Draws what train_recall measured: plot_recall.py FILE --out DIR writes DIR/recall.png and .svg, the accuracy of each
attention against the number of pairs (or against the length, where that alone varies), a panel for each length.

FILE holds one JSON object per line; those with a test_accuracy count. Prints the files that it wrote. Exits 2 for bad
usage, 1 for a failure.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
from typing import Any

from figures import MARKERS, PlotError, color_of, fail, import_matplotlib, read_lines, save

REQUIRED = {"attention": str, "task": str, "length": int, "pairs": int, "seed": int, "chance": float,
            "test_accuracy": (int, float)}
TITLES = {"mqar": "Multi-query associative recall", "copy": "Selective copying", "induction": "Induction heads"}


def check(line: Any) -> dict[str, Any]:
    """The line, if train_recall may have written it. Raises PlotError."""
    if not isinstance(line, dict):
        raise PlotError("expected a JSON object")
    if "test_accuracy" in line:
        for field, kind in REQUIRED.items():
            if not isinstance(line.get(field), kind):
                raise PlotError(f"unexpected {field}: {json.dumps(line.get(field))}")
    return line


def read_results(path: pathlib.Path) -> list[dict[str, Any]]:
    """The runs' last lines. Raises PlotError."""
    results = [line for line in read_lines(path, check) if "test_accuracy" in line]
    if not results:
        raise PlotError(f"nothing to draw in {path}")
    if len({result["task"] for result in results}) > 1:
        raise PlotError(f"{path}: expected the results of one task")
    return results


def draw_panel(axes: Any, results: list[dict[str, Any]], x: str) -> None:
    """One curve for each attention: means over the seeds, with the least and the most as bars."""
    values = sorted({result[x] for result in results})
    for attention in dict.fromkeys(result["attention"] for result in results):
        points: dict[int, list[float]] = {}
        for result in results:
            if result["attention"] == attention:
                points.setdefault(result[x], []).append(result["test_accuracy"])
        xs = sorted(points)
        ys = [statistics.fmean(points[at]) for at in xs]
        bars = [[y - min(points[at]) for at, y in zip(xs, ys)], [max(points[at]) - y for at, y in zip(xs, ys)]]
        axes.errorbar(xs, ys, yerr=bars, color=color_of(attention), marker=MARKERS.get(attention, "P"), linewidth=2,
                      elinewidth=1, capsize=3, markeredgecolor="white", markeredgewidth=0.8, label=attention,
                      clip_on=False, zorder=3)
    chances = {result[x]: result["chance"] for result in results}
    xs = sorted(chances)
    if len(xs) > 1:
        axes.plot(xs, [chances[at] for at in xs], ":", color="#777777", label="one guess")
    else:
        axes.axhline(chances[xs[0]], linestyle=":", color="#777777", label="one guess")
    axes.set_xscale("log", base=2)
    axes.set_xticks(values, labels=[str(value) for value in values])
    axes.set_xticks([], minor=True)
    axes.set_xlabel({"pairs": "pairs", "length": "sequence length (tokens)"}[x])
    axes.set_ylim(0, 1)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def draw(pyplot: Any, results: list[dict[str, Any]]) -> Any:
    lengths = sorted({result["length"] for result in results})
    against_length = len({result["pairs"] for result in results}) == 1 and len(lengths) > 1
    panels = [None] if against_length else lengths
    figure, all_axes = pyplot.subplots(1, len(panels), figsize=(max(6.5, 3.6 * len(panels) + 1.4), 4.2), sharey=True,
                                       squeeze=False, layout="constrained")
    for axes, length in zip(all_axes[0], panels):
        shown = [result for result in results if length in (None, result["length"])]
        draw_panel(axes, shown, "length" if against_length else "pairs")
        if length is not None:
            axes.set_title(f"length {length}", fontsize=10)
    all_axes[0][0].set_ylabel("accuracy on test queries")
    names: dict[str, Any] = {}
    for axes in all_axes[0]:
        for handle, name in zip(*axes.get_legend_handles_labels()):
            names.setdefault(name, handle)
    all_axes[0][-1].legend(names.values(), names.keys(), loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    first = results[0]
    sizes = [f"{first[field]} {name}" for field, name in (("layers", "layers"), ("hidden", "channels"))
             if field in first]
    if "vocabulary" in first:
        sizes.append(f"vocabulary {first['vocabulary']}")
    seeds = len({result["seed"] for result in results})
    sizes.append(f"{seeds} seeds: mean, least and most" if seeds > 1 else "1 seed")
    figure.suptitle("\n".join([TITLES.get(first["task"], first["task"]), " · ".join(sizes)]), fontsize=11)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(prog="plot_recall", description=__doc__)
    parser.add_argument("file", type=pathlib.Path, metavar="FILE", help="JSON lines of train_recall")
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR", help="folder for the figure")
    arguments = parser.parse_args()
    try:
        results = read_results(arguments.file)
        pyplot = import_matplotlib()
        arguments.out.mkdir(parents=True, exist_ok=True)
        figure = draw(pyplot, results)
        for suffix in (".png", ".svg"):
            save(figure, arguments.out / ("recall" + suffix))
            print(arguments.out / ("recall" + suffix))
    except PlotError as error:
        fail(str(error))
    except OSError as error:
        fail(f"cannot write {arguments.out}: {error.strerror or error}")


if __name__ == "__main__":
    main()
