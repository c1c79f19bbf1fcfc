"""What the plot_*.py scripts share: reading JSON lines, the colours of attentions, writing figures."""

from __future__ import annotations

import json
import os
import pathlib
import sys
import zlib
from typing import Any, Callable, NoReturn

APT_PYTHON = "/usr/bin/python3"  # the one for which apt installs python3-matplotlib

# Okabe and Ito's colours, which the colour-blind can tell apart, then Tol's. Fixed, so that all panels agree.
COLORS = {"sa": "#D55E00", "ea": "#009E73", "ea-2": "#56B4E9", "ea-6": "#0072B2", "ea-4": "#CC79A7", "ea-0": "#DDCC77",
          "ea-8": "#E69F00", "la": "#000000", "aft": "#882255", "none": "#888888", "sa-tiled": "#661100"}
OTHER_COLORS = ["#332288", "#999933", "#AA4499", "#44AA99", "#117733"]
MARKERS = {"sa": "s", "sa-tiled": "p", "ea": "^", "ea-2": "o", "ea-6": "D", "none": "v"}


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
