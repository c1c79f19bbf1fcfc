"""What the plot scripts share: their command line, reading JSON lines, colours of attentions, writing figures."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

APT_PYTHON = "/usr/bin/python3"  # the one for which apt installs python3-matplotlib

# Okabe and Ito's colours, which the colour-blind can tell apart, then Tol's. Fixed, so that all panels agree.
COLORS = {"sa": "#D55E00", "ea": "#009E73", "ea-2": "#56B4E9", "ea-6": "#0072B2", "ea-4": "#CC79A7", "ea-0": "#DDCC77",
          "ea-8": "#E69F00", "la": "#000000", "aft": "#882255", "none": "#888888", "sa-tiled": "#661100"}
MARKERS = {"sa": "s", "sa-tiled": "p", "ea": "^", "ea-2": "o", "ea-6": "D", "la": "X", "aft": "<", "none": "v"}
OTHER_COLORS = ["#332288", "#999933", "#AA4499", "#44AA99", "#117733"]


class PlotError(Exception):
    """What is wrong with the input, in one line."""


def fail(message: str, status: int = 1) -> NoReturn:
    print(f"{pathlib.Path(sys.argv[0]).stem}: {message}", file=sys.stderr)
    sys.exit(status)


def import_matplotlib() -> Any:
    """matplotlib.pyplot; where this Python lacks it but the system's may have it, starts again with that one."""
    try:
        import matplotlib
        matplotlib.use("Agg")
        import matplotlib.pyplot
        matplotlib.pyplot.rcParams.update({"svg.hashsalt": "elwise", "font.size": 10})
        return matplotlib.pyplot
    except ImportError as error:
        if os.path.realpath(sys.executable) != os.path.realpath(APT_PYTHON) and os.access(APT_PYTHON, os.X_OK):
            os.execv(APT_PYTHON, [APT_PYTHON, *sys.argv])
        fail(f"matplotlib is missing ({error}): apt-get install python3-matplotlib")


def read_lines(path: pathlib.Path, check: Callable[[Any], dict[str, Any]]) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, as `check` returns them. Raises PlotError with the file and the line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlotError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    result = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            result.append(check(json.loads(line)))
        except json.JSONDecodeError as error:
            raise PlotError(f"{path}:{number}: not JSON: {error.msg}") from None
        except PlotError as error:
            raise PlotError(f"{path}:{number}: {error}") from None
    return result


def color_of(attention: str) -> str:
    plain = attention.replace("ea-series-composed-", "ea-")
    color = COLORS.get(plain) or OTHER_COLORS[zlib.crc32(plain.encode()) % len(OTHER_COLORS)]
    if plain == attention:
        return color
    return "#" + "".join(f"{int(color[i:i + 2], 16) // 2:02x}" for i in (1, 3, 5))  # the same, darker


def save(figure: Any, path: pathlib.Path) -> None:
    """Writes beside `path` and renames."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        metadata = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(temporary, format=path.suffix[1:], dpi=150, metadata=metadata)
        os.replace(temporary, path)
    except OSError as error:
        raise PlotError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def run(description: str | None, check: Callable[[Any], dict[str, Any]],
        draw: Callable[[Any, list[dict[str, Any]]], Iterator[tuple[str, Any]]]) -> None:
    """The program: reads the files of JSON lines, writes each (name, figure) of draw(pyplot, lines) as PNG and SVG and
    prints the files that it wrote. Exits 2 for bad usage, 1 for a failure."""
    parser = argparse.ArgumentParser(prog=pathlib.Path(sys.argv[0]).stem, description=description)
    parser.add_argument("files", nargs="+", type=pathlib.Path, metavar="FILE", help="JSON lines")
    parser.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR", help="folder for the figures")
    arguments = parser.parse_args()
    try:
        lines = [line for path in arguments.files for line in read_lines(path, check)]
        pyplot = import_matplotlib()
        drawn = False
        for name, figure in draw(pyplot, lines):
            arguments.out.mkdir(parents=True, exist_ok=True)
            for suffix in (".png", ".svg"):
                save(figure, arguments.out / (name + suffix))
                print(arguments.out / (name + suffix))
            pyplot.close(figure)
            drawn = True
        if not drawn:
            raise PlotError(f"nothing to draw in {', '.join(map(str, arguments.files))}")
    except PlotError as error:
        fail(str(error))
    except OSError as error:
        fail(f"cannot write {arguments.out}: {error.strerror or error}")
