#!/usr/bin/env python3
"""Checks the source tree: its format (clang-format), its layers (#include lines) and the size of its files.

check_tree.py format|layers|size [--clang-format=PROGRAM]; prints each fault and exits 1, or 77 when skipped.
"""

import argparse
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDERS = ["core", "autograd", "ops", "cuda", "nn", "models", "tools", "tests"]
CPP = {".h", ".cpp", ".cu", ".cuh"}
MAX_LINES = 400
CLANG_FORMAT_VERSION = 14  # versions differ in what they call formatted

KERNEL_CONTRACT = r"ops/\w+_kernels\.h"
OPS = r"core/|autograd/|ops/[^/]*$"
# What the files under a folder may include. The first pattern that a file's path matches counts.
LAYERS = [
    (KERNEL_CONTRACT, rf"core/|{KERNEL_CONTRACT}"),
    (r"ops/cpu/", rf"core/(?!tensor)|{KERNEL_CONTRACT}|ops/loop_nest\.h|ops/cpu/"),
    (r"cuda/", rf"core/(?!tensor)|{KERNEL_CONTRACT}|cuda/"),
    (r"core/", r"core/"),
    (r"autograd/", r"core/|autograd/"),
    (r"ops/", OPS),
    (r"nn/", OPS + r"|nn/"),
    (r"models/", OPS + r"|nn/|models/"),
    # Benchmarks check a kernel, as its tests do, before they time it.
    (r"tools/bench_", OPS + r"|tools/|tests/support/(closeness|naive_\w+)\.h"),
    (r"tools/", OPS + r"|nn/|models/|tools/"),
    (r"tests/", r"."),
]


def files(suffixes):
    """Paths, relative to the root, of the tree's files with one of these suffixes."""
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in suffixes and path.is_file():
                yield path.relative_to(ROOT)


def check_format(clang_format):
    try:
        version = subprocess.run([clang_format, "--version"], capture_output=True, text=True).stdout.strip()
    except OSError:
        version = "none"
    if not re.search(rf"version {CLANG_FORMAT_VERSION}\.", version):
        print(f"skipped: needs clang-format {CLANG_FORMAT_VERSION}, found: {version}")
        sys.exit(77)
    run = subprocess.run([clang_format, "--dry-run", "-Werror", *map(str, files(CPP))], cwd=ROOT,
                         capture_output=True, text=True)
    return run.stderr.splitlines()


def check_layers():
    faults = []
    for path in files(CPP):
        if path.parts[:2] == ("tests", "install"):
            continue  # a consumer's own project
        allowed = next(allowed for pattern, allowed in LAYERS if re.match(pattern, path.as_posix()))
        for number, line in enumerate((ROOT / path).read_text().splitlines(), 1):
            include = re.match(r'#include "([^"]+)"', line)
            if not include:
                continue
            if not (ROOT / include[1]).is_file():
                faults.append(f"{path}:{number}: {include[1]} is not a path from the root of the tree")
            elif not re.match(allowed, include[1]):
                faults.append(f"{path}:{number}: {path.parent} must not include {include[1]}")
    return faults


def check_size():
    counts = {path: len((ROOT / path).read_text().splitlines()) for path in files(CPP | {".py", ".sh", ".cmake"})}
    return [f"{path}: {count} lines, at most {MAX_LINES}" for path, count in counts.items() if count > MAX_LINES]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("check", choices=["format", "layers", "size"])
    parser.add_argument("--clang-format", default="clang-format")
    arguments = parser.parse_args()
    if arguments.check == "format":
        faults = check_format(arguments.clang_format)
    else:
        faults = check_layers() if arguments.check == "layers" else check_size()
    print("\n".join(faults))
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
