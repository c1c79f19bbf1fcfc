#!/usr/bin/env python3
"""Compares the speed and memory of a BERT training step in Elwise and in PyTorch, and prints a Markdown table.

    python3 -m venv venv && venv/bin/pip install torch
    tools/compare_pytorch.py --python venv/bin/python

Both train the same model (pytorch_bert.py states PyTorch's: EA composed as in figure 2 of arXiv 2501.05730, SA by
scaled_dot_product_attention) with AdamW and no dropout. Every measurement is a process of its own; the processes of
a pair run one after the other and pairs alternate their order. Peak memory is the kernel's count for the whole
process (ru_maxrss), for PyTorch with Python and its libraries, and with the compiler where it compiles; on a GPU it
is each allocator's own count of what its tensors took.

With --generate LIST it compares single steps of generation instead, with so many tokens before them: infer_bert_cost
--position against pytorch_generation.py, eager, on the CPU.
"""

import argparse
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any, NoReturn, TextIO

from comparison_table import SIDES, Configuration, describe, gibibytes, table

ROOT = pathlib.Path(__file__).resolve().parents[1]
BUILD_HINT = "cmake --preset release && cmake --build --preset release --target train_bert_cost infer_bert_cost"
TORCH_HINT = "python3 -m venv DIR && DIR/bin/pip install torch, then --python DIR/bin/python"
EXIT_FAILURE, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

MODEL_SIZES = ("layers", "hidden", "heads", "intermediate", "vocab")
LARGEST_ORDER = 16
LEARNED_POSITIONS, LONGEST = 512, 8192  # Elwise's positions are learned up to here
SHARE_OF_MEMORY = 0.8  # that full EA's weights may take
# Large tensors come from malloc's heap and stay with the process. Else each is mapped and zeroed by the kernel anew,
# which costs PyTorch up to a quarter of its time; Elwise keeps its memory too.
KEEP_MEMORY = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1099511627776"


class Failure(Exception):
    """What the program cannot go on with; the message is one line."""


class ChildFailure(Exception):
    """One measurement that failed; the message is one line."""


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\n")


def whole_number(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {least}, got '{text}'")
        return int(text)

    return parse


def lengths(text: str) -> list[int]:
    values = [whole_number(1)(item) for item in text.split(",")]
    if max(values) > LONGEST:
        raise argparse.ArgumentTypeError(f"expected at most {LONGEST} tokens (learned positions), got {max(values)}")
    return values


def batches(text: str) -> list[int]:
    return [whole_number(1)(item) for item in text.split(",")]


def attentions(text: str) -> list[str]:
    for name in text.split(","):
        order = re.fullmatch(r"ea-(?:series-composed-)?([0-9]+)", name)
        is_series = order is not None and int(order[1]) % 2 == 0 and int(order[1]) <= LARGEST_ORDER
        if name not in ("sa", "sa-tiled", "ea") and not is_series:
            raise argparse.ArgumentTypeError(
                f"expected sa, sa-tiled, ea, ea-N or ea-series-composed-N (N even, 0 .. {LARGEST_ORDER}), got '{name}'")
    return text.split(",")


def dtypes(text: str) -> list[str]:
    for name in text.split(","):
        if name not in ("f32", "f64", "bf16"):
            raise argparse.ArgumentTypeError(f"expected f32, f64 or bf16, got '{name}'")
    return text.split(",")


def device(text: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:[0-9]+)?", text):
        raise argparse.ArgumentTypeError(f"expected cpu, cuda or cuda:N, got '{text}'")
    return text


def parse_arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, prog="compare_pytorch")
    add = parser.add_argument
    positive = whole_number(1)
    add("--attention", type=attentions, default=["ea-6", "sa"],
        help="comma-separated: sa, sa-tiled, ea, ea-N or ea-series-composed-N (default: ea-6,sa)")
    add("--seq-len", type=lengths, default=[128, 512], help="sequence lengths, comma-separated (default: 128,512)")
    add("--batch", type=batches, default=[1], help="batch sizes, comma-separated (default: 1)")
    add("--causal", action="store_true", help="a token sees only itself and what stands before it")
    for name, default in zip(MODEL_SIZES, (12, 768, 12, 3072, 30522)):
        add(f"--{name}", type=positive, default=default, help=f"default: {default}")
    add("--device", type=device, default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    add("--tf32", action="store_true", help="on a GPU: let matrix products round their operands to TF32")
    add("--dtype", type=dtypes, default=["f32"],
        help="f32, f64 or bf16 (ours stepped in f32), comma-separated (default: f32)")
    add("--pairs", type=positive, default=3, help="measurements of each side (default: 3)")
    add("--steps", type=positive, default=5, help="measured steps of each (default: 5)")
    add("--warmup", type=positive, default=2, help="steps before them, the first of which compiles (default: 2)")
    add("--threads", type=positive, default=len(os.sched_getaffinity(0)), help="default: all of this machine's")
    add("--seed", type=whole_number(0), default=0, help="of parameters and data (default: 0)")
    add("--python", default=sys.executable, help="the Python that has PyTorch 2 (default: this one)")
    add("--train-bert-cost", type=pathlib.Path, default=ROOT / "build/release/tools/train_bert_cost",
        help="Elwise's side (default: build/release/tools/train_bert_cost)")
    add("--no-compile", action="store_true", help="leave torch.compile out")
    add("--optimizer", choices=["fused", "foreach", "single"], default="fused",
        help="PyTorch's implementation of AdamW (default: fused, the fastest)")
    add("--step-in-backward", action="store_true",
        help="step each parameter in backward, on both sides, and free its gradient: less memory")
    add("--malloc", choices=["keep", "default"], default="keep",
        help="keep: PyTorch's process keeps freed memory, which is faster; default: glibc's settings (default: keep)")
    add("--json", help="write one JSON object per measurement to this file")
    add("--generate", type=lengths, metavar="LIST",
        help="compare steps of generation with so many tokens before them, comma-separated, in place of training")
    add("--infer-bert-cost", type=pathlib.Path, default=ROOT / "build/release/tools/infer_bert_cost",
        help="Elwise's side of --generate (default: build/release/tools/infer_bert_cost)")
    add("--worker", choices=["eager", "compiled"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.hidden % options.heads != 0:
        parser.error(f"hidden: {options.hidden} is not divisible by {options.heads} heads")
    if options.generate:
        if "ea" in options.attention or options.device != "cpu":
            parser.error("generate: expected sa or ea-N on the CPU: PyTorch's half has no other step")
        options.no_compile = options.causal = True
    return options


def work(options: argparse.Namespace) -> None:
    """The worker: one measurement in PyTorch, written as one JSON object."""
    from pytorch_bert import Config, Run, measure

    length = options.seq_len[0]
    config = Config(options.attention[0], length, options.batch[0], options.causal, options.layers, options.hidden,
                    options.heads, options.intermediate, options.vocab, max(length, LEARNED_POSITIONS))
    run = Run(options.worker == "compiled", options.optimizer, options.steps, options.warmup, options.threads,
              options.dtype[0], options.seed, options.device, options.tf32, options.step_in_backward)
    try:
        result = measure(config, run)
    except Exception as error:  # whatever PyTorch raises: its message may end in advice, its first line says what
        sys.exit(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
    pathlib.Path(options.json).write_text(json.dumps(result))


def work_generating(options: argparse.Namespace) -> None:
    """The worker of --generate."""
    from pytorch_bert import Config
    from pytorch_generation import measure

    position = options.generate[0]
    positions = position + options.warmup + options.steps
    config = Config(options.attention[0], positions, options.batch[0], True, options.layers, options.hidden,
                    options.heads, options.intermediate, options.vocab, positions)
    result = measure(config, position, options.steps, options.warmup, options.threads, options.dtype[0],
                     options.seed)
    pathlib.Path(options.json).write_text(json.dumps(result))


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def run_child(command: list[str], environment: dict[str, str]) -> int:
    """Runs a process to its end and gives its peak resident memory in bytes. Throws ChildFailure."""
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except KeyboardInterrupt:
            child.terminate()
            child.wait()
            raise
        child.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if child.returncode in (-signal.SIGINT, EXIT_INTERRUPTED):
        raise KeyboardInterrupt
    if child.returncode < 0:
        raise ChildFailure(f"ended by {signal.Signals(-child.returncode).name} (out of memory?)")
    if child.returncode != 0:
        raise ChildFailure(last_line(text))
    return usage.ru_maxrss * 1024


def measure_side(side: str, configuration: Configuration, options: argparse.Namespace) -> dict[str, Any]:
    """One measurement by a process of its own. Throws ChildFailure."""
    environment = dict(os.environ)
    with tempfile.TemporaryDirectory() as folder:
        result = pathlib.Path(folder) / "result.json"
        if side == "elwise":
            program = [options.infer_bert_cost] if options.generate else [options.train_bert_cost, "--no-matmul-floor"]
            command = [*map(str, program), "--quiet"]
        else:
            command = [options.python, __file__, "--worker", side, "--optimizer", options.optimizer]
            if options.malloc == "keep":
                environment.setdefault("GLIBC_TUNABLES", KEEP_MEMORY)
        length = "--seq-len" if not options.generate else "--position" if side == "elwise" else "--generate"
        command += ["--attention", configuration.attention, length, str(configuration.length), "--batch",
                    str(configuration.batch), "--dtype", configuration.dtype, "--json", str(result)]
        if not options.generate:
            for flag in ("causal", "tf32", "step_in_backward"):
                command += [f"--{flag.replace('_', '-')}"] * getattr(options, flag)
        warmup = ["warmup"] * (not options.generate or side != "elwise")
        for name in (*MODEL_SIZES, "device", "steps", "threads", "seed", *warmup):
            command += [f"--{name}", str(getattr(options, name))]
        peak = run_child(command, environment)
        measurement = json.loads(result.read_text())
    measurement.setdefault("step_ms", measurement.get("ms_per_token"))
    tokens = configuration.batch * (1 if options.generate else configuration.length)
    measurement["tokens_per_s"] = tokens * 1e3 / measurement["step_ms"]
    if options.device == "cpu":
        measurement["peak_bytes"] = peak
    return measurement


def full_ea_bytes(configuration: Configuration, options: argparse.Namespace) -> int:
    """What composed EA needs for tensors [B, L, L, D]: each layer keeps the differences, the weights and, where
    causal, the masked weights; backward has three more at a time."""
    value = {"f32": 4, "f64": 8, "bf16": 2}[configuration.dtype]
    size = configuration.batch * configuration.length**2 * options.hidden * value
    return size * ((2 + options.causal) * options.layers + 3)


def available_bytes() -> int:
    found = re.search(r"MemAvailable: *([0-9]+) kB", pathlib.Path("/proc/meminfo").read_text())
    return int(found[1]) * 1024 if found else sys.maxsize


def measure_pairs(configuration: Configuration, options: argparse.Namespace, log: TextIO | None) -> None:
    """Measures all sides in turn, `pairs` times; a side that fails is not tried again."""
    sides = [side for side in SIDES if side != "compiled" or not options.no_compile]
    needed = full_ea_bytes(configuration, options) if configuration.attention == "ea" else 0
    if options.device == "cpu" and needed > SHARE_OF_MEMORY * available_bytes():
        fail(configuration, sides[1:], f"composed EA needs {gibibytes(needed)} and more: does not fit")
    for number in range(options.pairs):
        pair: dict[str, dict[str, Any]] = {}
        configuration.pairs.append(pair)
        for side in sides if number % 2 == 0 else sides[::-1]:
            if side in configuration.failed:
                continue
            try:
                pair[side] = measure_side(side, configuration, options)
            except ChildFailure as failure:
                fail(configuration, [side], str(failure))
                continue
            report(configuration, number, side, pair[side], options, log)
        counts = {measurement["parameters"] for measurement in pair.values()}
        if len(counts) > 1 and not options.generate:  # tables of positions and types, of which a step reads a row
            raise Failure(f"{configuration}: the models differ: they have {sorted(counts)} parameters")


def fail(configuration: Configuration, sides: list[str], reason: str) -> None:
    for side in sides:
        configuration.failed[side] = reason
        print(f"compare_pytorch: {configuration}: {SIDES[side]} fails: {reason}", file=sys.stderr)


def report(configuration: Configuration, number: int, side: str, measurement: dict[str, Any],
           options: argparse.Namespace, log: TextIO | None) -> None:
    first = measurement.get("first_step_ms")
    loss = f", first loss {measurement['loss_first']:.2f}" if "loss_first" in measurement else ""
    compiling = f", first step {first / 1e3:.0f} s" if side == "compiled" and first else ""
    print(f"{configuration}, pair {number + 1} of {options.pairs}: {SIDES[side]} {measurement['step_ms']:.1f} ms a "
          f"step, peak {gibibytes(measurement['peak_bytes'])}{loss}{compiling}", file=sys.stderr)
    if log is not None:
        context = {"side": side, "pair": number + 1, "attention": configuration.attention,
                   "seq_len": configuration.length, "batch": configuration.batch, "threads": options.threads,
                   "device": options.device, "dtype": configuration.dtype,
                   "malloc": options.malloc if side != "elwise" else None}
        print(json.dumps({**context, **measurement}), file=log, flush=True)


def torch_version(python: str) -> str:
    """The version of that Python's torch. Throws Failure where there is none."""
    try:
        probe = subprocess.run([python, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True)
    except OSError as error:
        raise Failure(f"cannot run {python}: {error.strerror}; make one: {TORCH_HINT}") from error
    if probe.returncode != 0:
        raise Failure(f"no PyTorch in {python} ({last_line(probe.stderr)}); make one: {TORCH_HINT}")
    version = probe.stdout.strip()
    if int(version.split(".")[0]) < 2:
        raise Failure(f"expected PyTorch 2 or newer in {python}, got {version}; make one: {TORCH_HINT}")
    return version


def compare(options: argparse.Namespace) -> int:
    program = options.infer_bert_cost if options.generate else options.train_bert_cost
    if not os.access(program, os.X_OK):
        raise Failure(f"no program {program}; build it: {BUILD_HINT}")
    version = torch_version(options.python)
    try:
        log = open(options.json, "w", encoding="utf-8") if options.json else None
    except OSError as error:
        raise Failure(f"json: cannot write {options.json}: {error.strerror}") from error
    configurations: list[Configuration] = []
    status = 0
    try:
        for length in options.generate or options.seq_len:
            for batch in options.batch:
                for dtype in options.dtype:
                    for attention in options.attention:
                        configurations.append(Configuration(attention, dtype, length, batch))
                        measure_pairs(configurations[-1], options, log)
    except KeyboardInterrupt:
        status = EXIT_INTERRUPTED
    measured = [configuration for configuration in configurations if any(configuration.pairs)]
    if status == 0 and any({"elwise", "eager"} & configuration.failed.keys() for configuration in configurations):
        status = EXIT_FAILURE
    print(describe(options, version, measured) + (", interrupted" if status == EXIT_INTERRUPTED else "") + "\n")
    print(table(measured, not options.no_compile, "position" if options.generate else "length"))
    return status


def main() -> int:
    options = parse_arguments()
    if options.worker:
        work_generating(options) if options.generate else work(options)
        return 0
    try:
        return compare(options)
    except (Failure, OSError) as failure:
        print(f"compare_pytorch: {failure}", file=sys.stderr)
    return EXIT_FAILURE


if __name__ == "__main__":
    sys.exit(main())
