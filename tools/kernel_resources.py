"""What the compiler and the disassembler say of CUDA kernels: registers, spills, shared memory, widths of accesses."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable

ROOT = pathlib.Path(__file__).resolve().parents[1]
TOOLKIT = pathlib.Path("/usr/local/cuda/bin")

# As ptxas -v writes them. A function that a kernel calls follows it, with spills of its own.
ENTRY = re.compile(r"Compiling entry function '(\w+)'")
SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")
# As cuobjdump -sass writes them: LDG.E.128.CONSTANT, STG.E.U8; LDGSTS copies to shared memory. A pointer whose memory
# the compiler does not know is followed by LD and ST.
SASS_FUNCTION = re.compile(r"\s*Function : (\w+)")
SASS_ACCESS = re.compile(r"\b(LDG|LDGSTS|LD|STG|ST)\.E((?:\.\w+)*)\s")
SASS_WIDTH = re.compile(r"\.[US]?(8|16|64|128|256)\b")
USUAL_WIDTH = 32


class ReportError(Exception):
    """What the report cannot go on with, in one line."""


@dataclasses.dataclass
class Kernel:
    """One instantiation. Widths are in bits, 0 where there is no such access, None where nobody disassembled it."""

    source: str  # "norm.cu"
    name: str  # as short_name() gives it
    registers: int
    spill_bytes: int
    shared_bytes: int
    load_bits: int | None = None
    store_bits: int | None = None

    @property
    def is_f32(self) -> bool:
        """Unless an argument names another type of elements; what only moves elements knows their size."""
        return not re.search(r"double|__nv_bfloat16|\b(long|short|char|bool)\b", self.name)


def split_arguments(text: str) -> list[str]:
    """At the commas outside of all brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "<(") - (character in ">)")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def short_name(demangled: str) -> str:
    """"void elwise::cuda::(anonymous namespace)::fill_kernel<float>(float*, long)" -> "fill_kernel<float>"."""
    text = demangled.replace("(anonymous namespace)::", "").removeprefix("void ")
    depth, end = 0, len(text)
    for position, character in enumerate(text):
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0:
            end = position
            break
    return re.sub(r"\b(?:[a-z_]\w*::)+", "", text[:end])


def without(name: str, arguments: str) -> str:
    """The name less those arguments of its template that match."""
    template, _, rest = name.partition("<")
    kept = [argument for argument in split_arguments(rest[:-1]) if not re.fullmatch(arguments, argument)]
    return f"{template}<{', '.join(kept)}>" if kept else template


def demangled(names: Iterable[str]) -> dict[str, str]:
    names = list(names)
    try:
        run = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ReportError(f"c++filt does not run (it comes with g++'s binutils): {error}") from None
    return dict(zip(names, run.stdout.splitlines()))


def parse_resources(lines: Iterable[str]) -> dict[str, dict[str, int]]:
    """Of what nvcc -Xptxas -v writes: mangled name -> fields of Kernel."""
    kernels: dict[str, dict[str, int]] = {}
    current: dict[str, int] = {}
    for line in lines:
        if entry := ENTRY.search(line):
            current = kernels[entry[1]] = {"registers": 0, "spill_bytes": 0, "shared_bytes": 0}
        elif spills := SPILLS.search(line):
            current["spill_bytes"] += int(spills[1]) + int(spills[2])
        elif used := USED.search(line):
            current["registers"] = int(used[1])
            if shared := SHARED.search(line):
                current["shared_bytes"] = int(shared[1])
    return kernels


def parse_widths(lines: Iterable[str]) -> dict[str, dict[str, int]]:
    """Of what cuobjdump -sass writes: mangled name -> the widest accesses, as fields of Kernel."""
    kernels: dict[str, dict[str, int]] = {}
    current: dict[str, int] = {}
    for line in lines:
        if function := SASS_FUNCTION.match(line):
            current = kernels[function[1]] = {"load_bits": 0, "store_bits": 0}
        elif access := SASS_ACCESS.search(line):
            width = SASS_WIDTH.search(access[2])
            field = "store_bits" if access[1] in ("ST", "STG") else "load_bits"
            current[field] = max(current[field], int(width[1]) if width else USUAL_WIDTH)
    return kernels


def find_nvcc(given: str | None) -> str | None:
    return given or shutil.which("nvcc") or shutil.which("nvcc", path=str(TOOLKIT))


def find_cuobjdump(given: str | None, nvcc: str) -> str | None:
    beside = pathlib.Path(shutil.which(nvcc) or nvcc).resolve().parent
    return given or shutil.which("cuobjdump") or shutil.which("cuobjdump", path=str(beside))


def first_error(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line or "fatal" in line), lines[-1] if lines else "no message")


def disassembled(cubin: str, cuobjdump: str) -> dict[str, dict[str, int]]:
    """The widths in a file of machine code. The text may have hundreds of megabytes, so it is never held whole."""
    # It runs nvdisasm, which comes beside it.
    path = os.pathsep.join([str(pathlib.Path(shutil.which(cuobjdump) or cuobjdump).parent), os.environ.get("PATH", "")])
    command = [cuobjdump, "-sass", cubin]
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              env={**os.environ, "PATH": path}) as process:
            lines, tail = process.stdout, []

            def remembered() -> Iterable[str]:
                for line in lines:
                    tail[:] = [*tail[-1:], line]
                    yield line

            widths = parse_widths(remembered())
    except OSError as error:
        raise ReportError(f"cuobjdump does not run: {error}") from None
    if process.returncode != 0:
        raise ReportError(f"cuobjdump: {first_error(''.join(tail))}")
    return widths


def examine(source: pathlib.Path, arch: str, nvcc: str, cuobjdump: str | None) -> list[Kernel]:
    """Compiles one file and describes its kernels, in the order of their names."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = str(pathlib.Path(folder) / "code.cubin")
        command = [nvcc, "-std=c++20", f"-arch={arch}", "-cubin", "-Xptxas=-v", f"-I{ROOT}", str(source), "-o", cubin]
        try:
            run = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            raise ReportError(f"nvcc does not run: {error}") from None
        log = run.stdout + run.stderr
        if run.returncode != 0:
            raise ReportError(f"nvcc: {source}: {first_error(log)}")
        resources = parse_resources(log.splitlines())
        widths = disassembled(cubin, cuobjdump) if cuobjdump and resources else {}
    names = demangled(resources)
    kernels = [Kernel(source.name, short_name(names[mangled]), **fields, **widths.get(mangled, {}))
               for mangled, fields in resources.items()]
    return sorted(kernels, key=lambda kernel: kernel.name)
