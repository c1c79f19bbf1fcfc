#!/usr/bin/env python3
"""Draws figure 3 of arXiv 2501.05730 and what it is about: plot_taylor.py FILE --out DIR writes DIR/taylor.png and
.svg: e^x beside its Taylor polynomials, and how the products 2qk of a trained model are distributed.

FILE holds the JSON lines of plot_taylor, one for each layer and one for all together (layer null). Prints the files
that it wrote. Exits 2 for bad usage, 1 for a failure.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
from typing import Any

from figures import PlotError, color_of, fail, import_matplotlib, read_lines, save

REQUIRED = {"attention": str, "bin_low": (int, float), "bin_width": (int, float), "counts": list, "products": int,
            "below": int, "above": int, "tolerance": float, "outside": dict, "ranges": dict}


def check(line: Any) -> dict[str, Any]:
    """The line, if it is a histogram. Raises PlotError."""
    for field, kind in REQUIRED.items():
        if not isinstance(line, dict) or not isinstance(line.get(field), kind):
            raise PlotError(f"not a histogram of plot_taylor: {field} is missing")
    return line


def read_histograms(path: pathlib.Path) -> list[dict[str, Any]]:
    """Those of the layers, then that of all. Raises PlotError."""
    lines = read_lines(path, check)
    if not lines or lines[-1].get("layer") is not None:
        raise PlotError(f"{path}: expected the histogram of all layers as the last line")
    return lines


def polynomial(order: int, x: float) -> float:
    return sum(x**n / math.factorial(n) for n in range(order + 1))


def draw_polynomials(axes: Any, orders: list[int], limit: float) -> None:
    xs = [limit * (i / 200 - 1) for i in range(401)]
    axes.plot(xs, [math.exp(x) for x in xs], color="black", linewidth=3, label="exp(x)", zorder=2)
    for order in orders:
        axes.plot(xs, [polynomial(order, x) for x in xs], color=color_of(f"ea-{order}"), linewidth=1.8,
                  label=f"order {order}", zorder=3)
    axes.set_yscale("log")
    axes.set_xlabel("x")
    axes.set_title("exp(x) and its Taylor polynomials", fontsize=10)
    axes.legend(frameon=False)


def draw_histograms(axes: Any, lines: list[dict[str, Any]], limit: float) -> None:
    """Each layer's density of 2qk, and all layers', with the ranges in which each order is within 1 %."""
    for line in lines:
        whole = line.get("layer") is None
        edges = [line["bin_low"] + i * line["bin_width"] for i in range(len(line["counts"]) + 1)]
        densities = [count / line["products"] / line["bin_width"] for count in line["counts"]]
        axes.stairs(densities, edges, color="black" if whole else "#AAAAAA", linewidth=2 if whole else 1,
                    zorder=3 if whole else 2,
                    label="all layers" if whole else "each layer" if line is lines[0] else None)
    top = max(count / line["products"] / line["bin_width"] for line in lines for count in line["counts"])
    for i, (order, (low, high)) in enumerate(lines[-1]["ranges"].items()):
        share = 100 * lines[-1]["outside"][order]
        axes.plot([low, high], [top * 2.0**(i + 1)] * 2, "|-", color=color_of(f"ea-{order}"), linewidth=2, zorder=4,
                  label=f"order {order} within {100 * lines[-1]['tolerance']:g} %: not for {share:.3g} %")
    axes.set_yscale("log")
    axes.set_xlim(-limit, limit)
    axes.set_xlabel("2qk")
    axes.set_ylabel("density")
    beyond = 100 * (lines[-1]["below"] + lines[-1]["above"]) / lines[-1]["products"]
    axes.set_title(f"2qk of a trained model ({lines[-1]['attention']}), {beyond:.3g} % beyond the axis", fontsize=10)
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncol=2)


def draw(pyplot: Any, lines: list[dict[str, Any]]) -> Any:
    whole = lines[-1]
    limit = max(-whole["bin_low"], whole["bin_low"] + whole["bin_width"] * len(whole["counts"]))
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
    draw_polynomials(left, [int(order) for order in whole["ranges"]], min(limit, 6.0))
    draw_histograms(right, lines, limit)
    for axes in (left, right):
        axes.grid(color="#DDDDDD", linewidth=0.8)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(prog="plot_taylor", description=__doc__)
    parser.add_argument("file", type=pathlib.Path, metavar="FILE", help="JSON lines of plot_taylor")
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR", help="folder for the figure")
    arguments = parser.parse_args()
    try:
        lines = read_histograms(arguments.file)
        pyplot = import_matplotlib()
        arguments.out.mkdir(parents=True, exist_ok=True)
        figure = draw(pyplot, lines)
        for suffix in (".png", ".svg"):
            save(figure, arguments.out / ("taylor" + suffix))
            print(arguments.out / ("taylor" + suffix))
    except PlotError as error:
        fail(str(error))
    except OSError as error:
        fail(f"cannot write {arguments.out}: {error.strerror or error}")


if __name__ == "__main__":
    main()
