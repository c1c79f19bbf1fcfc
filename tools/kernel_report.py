#!/usr/bin/env python3
"""Prints, for each CUDA kernel: registers, bytes spilled, static shared memory, its widest load and store of global
memory in bits (of machine code) and, with --traffic, the bytes that it moves over the fewest that its contract's
cost() says.

    cmake --build --preset release --target kernel_traffic && build/release/tests/kernel_traffic --json traffic.json
    tools/kernel_report.py --traffic traffic.json

A row stands for all forms of a kernel for f32: its most registers and shared memory, and its widths where operands are
aligned. "moved" counts what threads ask for, before any cache, on the emulation; "sectors" counts each 32-byte sector
once a launch, as if no cache lost anything. Both are relative to the fewest bytes.

Exits 1 where a kernel spills, where an aligned f32 form accesses less than 16 bytes at a time, and where a kernel moves
more than 1.5 times the fewest bytes; the exceptions, with reasons, stand in kernel_rules.py. Exits 2 for bad usage.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from kernel_resources import ROOT, Kernel, ReportError, examine, find_cuobjdump, find_nvcc, short_name
from kernel_rules import aligned_width, family_of, faults_of

EXIT_FAILURE, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
NVCC_HINT = "install a CUDA toolkit, or name its nvcc with --nvcc"
CUOBJDUMP_HINT = ("pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm, then name .../nvidia/cu13/bin/cuobjdump "
                  "with --cuobjdump")


@dataclasses.dataclass
class Contract:
    """What a kernel of the contracts moved in one case, all its calls together."""

    kernel: str  # "layer_norm_forward"
    case: str
    fewest: float = 0  # bytes
    moved: float = 0
    sectors: float = 0
    parts: dict[str, float] = dataclasses.field(default_factory=dict)  # CUDA kernel -> bytes moved

    @property
    def ratio(self) -> float:
        return self.moved / self.fewest


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\n")


def pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"not a regular expression: {text} ({error})") from None


def architecture(text: str) -> str:
    if not re.fullmatch(r"sm_[0-9]+[af]?", text):
        raise argparse.ArgumentTypeError(f"expected sm_80, sm_90 or the like, got '{text}'")
    return text


def jobs(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got '{text}'")
    return int(text)


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="kernel_report")
    add = parser.add_argument
    add("sources", type=pathlib.Path, nargs="*", metavar="FILE", help="the .cu files (default: all of cuda/)")
    add("--arch", type=architecture, default="sm_90", help="the GPU to compile for (default: sm_90)")
    add("--kernels", type=pattern, default=pattern(""), metavar="REGEX", help="only kernels with such names")
    add("--all", action="store_true", help="a row for every form of a kernel and for every case of its traffic")
    add("--traffic", type=pathlib.Path, metavar="FILE", help="what kernel_traffic wrote")
    add("--markdown", action="store_true", help="print Markdown tables")
    add("--json", type=pathlib.Path, metavar="FILE", help="write everything to this file")
    add("--jobs", type=jobs, default=len(os.sched_getaffinity(0)), help="files at one time (default: one a processor)")
    add("--nvcc", help="the compiler (default: from PATH or /usr/local/cuda/bin)")
    add("--cuobjdump", help="the disassembler (default: from PATH or beside nvcc)")
    return parser.parse_args()


def examine_all(options: argparse.Namespace) -> list[Kernel]:
    nvcc = find_nvcc(options.nvcc)
    if nvcc is None:
        raise ReportError(f"no nvcc was found: {NVCC_HINT}")
    cuobjdump = find_cuobjdump(options.cuobjdump, nvcc)
    if cuobjdump is None:
        print(f"kernel_report: no cuobjdump was found, so widths are left out: {CUOBJDUMP_HINT}", file=sys.stderr)
    sources = options.sources or sorted((ROOT / "cuda").glob("*.cu"))
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        futures = [pool.submit(examine, source, options.arch, nvcc, cuobjdump) for source in sources]
        try:
            return [kernel for future in futures for kernel in future.result()]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def read_traffic(path: pathlib.Path) -> list[Contract]:
    contracts: dict[tuple[str, str], Contract] = {}
    try:
        for text in path.read_text().splitlines():
            line = json.loads(text)
            key = (line["kernel"], line["case"])
            contract = contracts.setdefault(key, Contract(*key))
            contract.fewest += line["fewest_read"] + line["fewest_written"]
            contract.moved += line["bytes_read"] + line["bytes_written"]
            contract.sectors += line["sector_bytes_read"] + line["sector_bytes_written"]
            for part in line["cuda_kernels"]:
                name = short_name(part["name"])
                contract.parts[name] = contract.parts.get(name, 0) + part["bytes_read"] + part["bytes_written"]
    except OSError as error:
        raise ReportError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ReportError(f"{path}: not what kernel_traffic writes ({error!r})") from None
    return list(contracts.values())


def worst(contracts: Iterable[Contract]) -> list[Contract]:
    """Of each kernel the case in which it moves most."""
    found: dict[str, Contract] = {}
    for contract in contracts:
        if contract.kernel not in found or contract.ratio > found[contract.kernel].ratio:
            found[contract.kernel] = contract
    return list(found.values())


def bits(width: int | None) -> str:
    return "-" if width is None else str(width) if width else "none"


def kernel_rows(kernels: Sequence[Kernel], contracts: Sequence[Contract], every_form: bool) -> list[list[str]]:
    header = ["kernel", "file", "forms", "registers", "spills", "shared", "load", "store"]
    rows = [header + ["moved / fewest", "in"] if contracts else header]
    row_of = str if every_form else family_of
    groups: dict[tuple[str, str], list[Kernel]] = {}
    for kernel in kernels:
        if every_form or kernel.is_f32:
            groups.setdefault((kernel.source, row_of(kernel.name)), []).append(kernel)
    for (source, name), forms in groups.items():
        row = [name, source, str(len(forms)), *(str(max(getattr(form, field) for form in forms))
                                                for field in ("registers", "spill_bytes", "shared_bytes")),
               *(bits(aligned_width(forms, field)) for field in ("load_bits", "store_bits"))]
        if contracts:
            within = worst(contract for contract in contracts if name in map(row_of, contract.parts))
            row += [" ".join(f"{contract.ratio:.2f}" for contract in within) or "-",
                    " ".join(contract.kernel for contract in within) or "-"]
        rows.append(row)
    return rows


def traffic_rows(contracts: Sequence[Contract], every_case: bool) -> list[list[str]]:
    rows = [["contract", "case", "fewest MB", "moved", "sectors", "CUDA kernels"]]
    for contract in contracts if every_case else worst(contracts):
        shares = [f"{name} {moved / contract.fewest:.2f}" for name, moved in contract.parts.items()]
        rows.append([contract.kernel, contract.case, f"{contract.fewest / 1e6:.1f}", f"{contract.ratio:.2f}",
                     f"{contract.sectors / contract.fewest:.2f}", ", ".join(shares)])
    return rows


def formatted(rows: Sequence[Sequence[str]], markdown: bool) -> str:
    columns = range(len(rows[0]))
    numeric = [all(re.fullmatch(r"[-0-9. ]+|none", row[i]) for row in rows[1:]) for i in columns]
    if markdown:
        rule = ["---:" if right else "---" for right in numeric]
        return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], rule, *rows[1:]])
    widths = [max(len(row[i]) for row in rows) for i in columns]
    return "\n".join("  ".join(row[i].rjust(widths[i]) if numeric[i] else row[i].ljust(widths[i])
                               for i in columns).rstrip() for row in rows)


def write_json(path: pathlib.Path, value: dict[str, Any]) -> None:
    beside = path.with_name(path.name + ".new")
    try:
        beside.write_text(json.dumps(value, indent=1) + "\n")
        beside.replace(path)
    except OSError as error:
        raise ReportError(f"cannot write {path}: {error.strerror}") from None


def report(options: argparse.Namespace) -> int:
    contracts = read_traffic(options.traffic) if options.traffic else []
    kernels = [kernel for kernel in examine_all(options) if options.kernels.search(kernel.name)]
    if not kernels:
        raise ReportError(f"no kernel's name has {options.kernels.pattern}")
    names = {kernel.name for kernel in kernels}
    contracts = [contract for contract in contracts if not names.isdisjoint(contract.parts)]
    faults = faults_of(kernels, {contract.kernel: contract.ratio for contract in worst(contracts)})
    print(formatted(kernel_rows(kernels, contracts, options.all), options.markdown))
    if contracts:
        print("\n" + formatted(traffic_rows(contracts, options.all), options.markdown))
    if options.json:
        write_json(options.json, {"arch": options.arch, "kernels": [dataclasses.asdict(kernel) for kernel in kernels],
                                  "traffic": [dataclasses.asdict(contract) for contract in contracts],
                                  "faults": faults})
    for fault in faults:
        print(f"kernel_report: {fault}", file=sys.stderr)
    return EXIT_FAILURE if faults else 0


def main() -> None:
    options = parse_arguments()
    try:
        sys.exit(report(options))
    except ReportError as error:
        print(f"kernel_report: {error}", file=sys.stderr)
        sys.exit(EXIT_FAILURE)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
