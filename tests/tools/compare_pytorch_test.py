#!/usr/bin/env python3
"""Tests of tools/compare_pytorch.py. One part a run, each a ctest entry:

program  the program with stand-ins for its two sides: errors, order, table, Ctrl-C; needs no PyTorch
golden   PyTorch's model against the golden values of tests/models/golden, in f64: those that Elwise is held to
run      both sides for real, at a tiny size

compare_pytorch_test.py PART [--train-bert-cost=PROGRAM]; golden and run exit 77 (skipped) where this Python has no
PyTorch.
"""

import argparse
import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "tools/compare_pytorch.py"
GOLDEN = ROOT / "tests/models/golden"
SKIPPED = 77
TOLERANCE = 1e-11  # as in bert_golden_test.cpp
TINY = ["--layers=2", "--hidden=32", "--heads=4", "--intermediate=64", "--vocab=300", "--seq-len=24", "--batch=2",
        "--steps=2", "--warmup=1", "--threads=1"]

# Either side: logs its call, then does what the plan beside it says of this side's n-th call: a step's milliseconds,
# a message to fail with, or "hang".
STAND_IN = """#!{python}
import json, pathlib, sys, time
folder = pathlib.Path({folder!r})
arguments = sys.argv[1:]
if arguments[0] == "-c":
    print("2.0.0")
    sys.exit()
side = arguments[arguments.index("--worker") + 1] if "--worker" in arguments else "elwise"
with open(folder / "calls", "a+") as log:
    print(side, file=log, flush=True)
    log.seek(0)
    number = log.read().split().count(side) - 1
action = json.loads((folder / "plan").read_text())[side][number]
if action == "hang":
    time.sleep(60)
if isinstance(action, str):
    sys.exit("a first line\\n" + action)
result = dict(step_ms=action, loss_first=1, parameters=8 if action == 2000 else 7, after_import_rss_bytes=1 << 29)
pathlib.Path(arguments[arguments.index("--json") + 1]).write_text(json.dumps(result))
"""


def run_program(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, PROGRAM, *map(str, arguments)], capture_output=True, text=True)


class Program(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.stand_in = self.executable("stand_in", STAND_IN.format(python=sys.executable, folder=folder.name))
        self.sides = ["--python", self.stand_in, "--train-bert-cost", self.stand_in]

    def executable(self, name: str, text: str) -> pathlib.Path:
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def plan(self, **sides: list[object]) -> None:
        (self.folder / "plan").write_text(json.dumps(sides))

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().split()

    def cells(self, output: str) -> list[str]:
        """Those of the table's last row."""
        return [cell.strip() for cell in output.splitlines()[-1].strip("|").split("|")]

    def test_errors(self) -> None:
        bare = self.executable("bare", f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
        cases: list[tuple[list[object], int, str]] = [
            (["--attention", "nonsense"], 2, "expected sa, sa-tiled, ea, ea-N"),
            (["--attention", "sa,ea-3"], 2, "(N even, 0 .. 16), got 'ea-3'"),
            (["--attention", "ea-18"], 2, "got 'ea-18'"),
            (["--seq-len", "128,0"], 2, "expected a whole number of at least 1, got '0'"),
            (["--seq-len", "9000"], 2, "at most 8192"),
            (["--batch", "-1"], 2, "--batch"),
            (["--warmup", "0"], 2, "at least 1"),
            (["--heads", "5"], 2, "hidden: 768 is not divisible by 5 heads"),
            (["--dtype", "f32,f16"], 2, "expected f32, f64 or bf16, got 'f16'"),
            (["--nonsense"], 2, "--nonsense"),
            (["--generate", "8,0"], 2, "expected a whole number of at least 1, got '0'"),
            (["--generate", "8", "--attention", "ea"], 2, "generate: expected sa or ea-N"),
            (["--generate", "8", "--infer-bert-cost", self.folder / "missing"], 1, "build it: cmake"),
            (["--train-bert-cost", self.folder / "missing"], 1, "build it: cmake"),
            (["--python", self.folder / "missing"], 1, "pip install torch"),
            (["--python", bare], 1, "No module named 'torch'); make one: python3 -m venv"),
            (["--json", self.folder / "no" / "such.json"], 1, "cannot write"),
        ]
        for arguments, status, message in cases:
            with self.subTest(arguments=arguments):
                run = run_program(*self.sides, *arguments)
                self.assertEqual(run.returncode, status, run.stderr)
                self.assertIn(message, run.stderr)
                self.assertEqual(run.stderr.count("\n"), 1, run.stderr)
                self.assertEqual(run.stdout, "")

    def test_pairs_alternate_and_cells_are_medians(self) -> None:
        # Tokens a second are 64 000 / ms. The ratios of the pairs, 4, 2 and 3, have another median than the columns.
        self.plan(elwise=[100, 100, 200], eager=[400, 200, 600], compiled=[100, 50, 50])
        log = self.folder / "log.json"
        run = run_program(*self.sides, "--attention=ea-6", "--seq-len=32", "--batch=2", "--pairs=3", "--json", log)
        self.assertEqual(run.returncode, 0, run.stderr)
        order = ["elwise", "eager", "compiled"]
        self.assertEqual(self.calls(), order + order[::-1] + order)
        cells = self.cells(run.stdout)
        self.assertEqual(cells[:9], ["ea-6", "f32", "2", "32", "640", "160", "3.00", "1280", "0.50"])
        self.assertEqual(len(cells), 14)
        self.assertTrue(all(cell.endswith(" GiB") for cell in (cells[9], cells[10], cells[12])), cells)
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        self.assertEqual([line["side"] for line in lines], self.calls())
        self.assertTrue(all(line["peak_bytes"] > 1 << 20 for line in lines))

    def test_rows_are_set_against_the_faster_softmax_attention_of_their_dtype(self) -> None:
        # sa and ea-6 in f32, then both in bf16; compiled is the faster rival in f32, eager in bf16.
        self.plan(elwise=[10, 10, 5, 4], eager=[40, 50, 12, 50], compiled=[20, 50, 24, 50])
        run = run_program(*self.sides, "--attention=sa,ea-6", "--dtype=f32,bf16", "--seq-len=8", "--pairs=1")
        self.assertEqual(run.returncode, 0, run.stderr)
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in run.stdout.splitlines()[-4:]]
        column = [cell.strip() for cell in run.stdout.splitlines()[2].strip("|").split("|")].index(
            "speed: Elwise / PyTorch's sa")
        self.assertEqual([" ".join((row[0], row[1], row[column])) for row in rows],
                         ["sa f32 2.00", "ea-6 f32 2.00", "sa bf16 2.40", "ea-6 bf16 3.00"])

    def test_steps_of_generation(self) -> None:
        self.plan(elwise=[10, 10, 20], eager=[40, 20, 60])
        run = run_program(*self.sides, "--infer-bert-cost", self.stand_in, "--generate=300", "--attention=ea-6",
                          "--batch=2", "--pairs=3")
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertEqual(self.calls(), ["elwise", "eager", "eager", "elwise", "elwise", "eager"])
        self.assertIn("| attention | dtype | batch | position |", run.stdout)
        self.assertEqual(self.cells(run.stdout)[:7], ["ea-6", "f32", "2", "300", "200.0", "50.0", "3.00"])

    def test_a_failed_compile_is_a_cell(self) -> None:
        self.plan(elwise=[10, 10], eager=[20, 20], compiled=["no compiler"])
        run = run_program(*self.sides, "--attention=sa", "--seq-len=8", "--pairs=2")
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertIn("sa f32 batch 1 length 8: PyTorch compiled fails: no compiler\n", run.stderr)
        self.assertEqual(self.cells(run.stdout)[4:9], ["800", "400", "2.00", "fails", "-"])
        self.assertEqual(self.calls().count("compiled"), 1)

    def test_a_failed_side_is_a_failure_after_the_table(self) -> None:
        self.plan(elwise=["out of memory", 10], eager=[20, 20])
        run = run_program(*self.sides, "--attention=sa,ea-6", "--seq-len=8", "--pairs=1", "--no-compile")
        self.assertEqual(run.returncode, 1)
        self.assertIn("Elwise fails: out of memory\n", run.stderr)
        self.assertIn("| sa | f32 | 1 | 8 | fails | 400 | - | - |", run.stdout)
        self.assertIn("| ea-6 | f32 | 1 | 8 | 800 | 400 | 2.00 | 2.00 |", run.stdout)

    def test_models_that_differ_are_refused(self) -> None:
        self.plan(elwise=[2000], eager=[20])
        run = run_program(*self.sides, "--attention=sa", "--seq-len=8", "--pairs=1", "--no-compile")
        self.assertEqual(run.returncode, 1)
        self.assertIn("the models differ: they have [7, 8] parameters", run.stderr)

    def test_full_ea_that_does_not_fit_is_not_tried(self) -> None:
        self.plan(elwise=[10])
        run = run_program(*self.sides, "--attention=ea", "--seq-len=8192", "--batch=64", "--pairs=1")
        self.assertEqual(run.returncode, 1)
        self.assertIn("does not fit", run.stderr)
        self.assertEqual(self.calls(), ["elwise"])

    def test_interrupt_prints_the_table_so_far(self) -> None:
        self.plan(elwise=[10, "hang"], eager=[20])
        command = [sys.executable, PROGRAM, *self.sides, "--attention=sa,ea-6", "--seq-len=8", "--pairs=1",
                   "--no-compile"]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        calls = self.folder / "calls"
        while time.monotonic() < deadline and not (calls.exists() and len(self.calls()) == 3):
            time.sleep(0.05)
        child.send_signal(signal.SIGINT)
        output, errors = child.communicate(timeout=30)
        self.assertEqual(child.returncode, 130, errors)
        self.assertIn(", interrupted", output)
        self.assertEqual(self.cells(output)[:7], ["sa", "f32", "1", "8", "800", "400", "2.00"])


class Golden(unittest.TestCase):
    def test_hidden_states_loss_and_gradients(self) -> None:
        import torch
        import torch.nn.functional as F
        from pytorch_bert import BertForMaskedLm, Config

        torch.set_default_dtype(torch.float64)
        initial = load_safetensors(GOLDEN / "initial.safetensors")
        inputs = load_safetensors(GOLDEN / "inputs.safetensors")
        head = {name: initial.pop(f"classifier.{name}").requires_grad_() for name in ("weight", "bias")}
        for attention in ("sa", "ea", "ea-2", "ea-6"):
            for causal in (False, True):
                config = Config(attention, length=9, batch=2, causal=causal, layers=2, hidden=16, heads=2,
                                intermediate=24, vocabulary=29, positions=16)
                model = BertForMaskedLm(config)
                model.load_state_dict(initial)
                hidden = model.bert(inputs["input_ids"], inputs["token_type_ids"])
                pooled = torch.tanh(model.bert.pooler["dense"](hidden[:, 0]))
                class_loss = F.cross_entropy(F.linear(pooled, **head), inputs["class_labels"])
                loss = model.head(hidden, inputs["masked_positions"], inputs["mlm_labels"]) + class_loss
                loss.backward()
                actual = {"hidden.2": hidden, "pooled": pooled, "loss": loss.reshape(1)}
                actual |= {f"grad.{name}": parameter.grad for name, parameter in model.named_parameters()}
                golden = load_safetensors(GOLDEN / f"{attention}{'-causal' * causal}.safetensors")
                for name, value in actual.items():
                    with self.subTest(attention=attention, causal=causal, name=name):
                        torch.testing.assert_close(value, golden[name], rtol=TOLERANCE, atol=TOLERANCE)

    def test_masked_lm_batch(self) -> None:
        import torch
        from pytorch_bert import Config, masked_lm_batch

        config = Config("sa", length=500, batch=20, vocabulary=1000)
        tokens, masked, labels = masked_lm_batch(config, torch.Generator().manual_seed(1))
        self.assertEqual((tokens.shape, masked.shape, labels.shape), ((20, 500), (1500,), (1500,)))
        self.assertEqual(masked.unique().numel(), 1500)
        self.assertTrue(0 <= tokens.min() and tokens.max() == 999 and labels.max() < 999)
        hidden = (tokens.flatten()[masked] == 999).double().mean()
        self.assertAlmostEqual(hidden.item(), 0.8, delta=0.05)
        kept = (tokens.flatten()[masked] == labels).double().mean()
        self.assertAlmostEqual(kept.item(), 0.1, delta=0.05)
        self.assertAlmostEqual((labels == 0).double().mean().item(), 0.1, delta=0.05)  # log 2 / log 1000


def load_safetensors(path: pathlib.Path) -> dict:
    """Name -> tensor: a length, a JSON header, the data."""
    import torch

    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    dtypes = {"F64": torch.float64, "I64": torch.int64, "BOOL": torch.bool}
    tensors = {}
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            flat = torch.frombuffer(data[start + begin:start + end], dtype=dtypes[entry["dtype"]])
            tensors[name] = flat.reshape(entry["shape"])
    return tensors


class Run(unittest.TestCase):
    train_bert_cost = ""

    def test_steps_of_generation(self) -> None:
        infer_bert_cost = pathlib.Path(self.train_bert_cost).with_name("infer_bert_cost")
        tiny = [option for option in TINY if not option.startswith("--seq-len")]
        run = run_program(*tiny, "--infer-bert-cost", infer_bert_cost, "--generate=8,300", "--attention=sa,ea-6",
                          "--pairs=1")
        self.assertEqual(run.returncode, 0, run.stderr)
        self.assertEqual(sum(line.startswith(("| sa", "| ea-6")) for line in run.stdout.splitlines()), 4)
        self.assertNotIn("fails", run.stdout)

    def compare(self, *options: str) -> list[dict[str, Any]]:
        """The measurements of one pair, without torch.compile."""
        with tempfile.TemporaryDirectory() as folder:
            log = pathlib.Path(folder) / "log.json"
            run = run_program(*TINY, "--train-bert-cost", self.train_bert_cost, *options, "--pairs=1", "--no-compile",
                              "--json", log)
            self.assertEqual(run.returncode, 0, run.stderr)
            self.assertNotIn("fails", run.stdout)
            return [json.loads(line) for line in log.read_text().splitlines()]

    def test_both_sides(self) -> None:
        lines = self.compare("--attention=sa,ea,ea-6", "--causal")
        self.assertEqual([line["side"] for line in lines], ["elwise", "eager"] * 3)
        self.assertEqual(len({line["parameters"] for line in lines}), 1)
        for line in lines:
            self.assertAlmostEqual(line["loss_first"], 5.7, delta=0.3)  # log 300, of a model that knows nothing

    def test_steps_in_backward_change_no_loss(self) -> None:
        options = ("--attention=ea-6", "--steps=4")
        after, within = self.compare(*options), self.compare(*options, "--step-in-backward")
        self.assertEqual([line["loss_last"] for line in within], [line["loss_last"] for line in after])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["program", "golden", "run"])
    parser.add_argument("--train-bert-cost", default=str(ROOT / "build/release/tools/train_bert_cost"))
    arguments = parser.parse_args()
    sys.path.insert(0, str(PROGRAM.parent))
    if arguments.part != "program":
        try:
            import torch  # noqa: F401
        except ImportError as error:
            print(f"skipped: no PyTorch in {sys.executable} ({error}); cmake -DELWISE_TORCH_PYTHON=PYTHON names one")
            sys.exit(SKIPPED)
    Run.train_bert_cost = arguments.train_bert_cost
    part = {"program": Program, "golden": Golden, "run": Run}[arguments.part]
    result = unittest.TextTestRunner().run(unittest.defaultTestLoader.loadTestsFromTestCase(part))
    sys.exit(0 if result.wasSuccessful() and result.testsRun > 0 else 1)


if __name__ == "__main__":
    main()
