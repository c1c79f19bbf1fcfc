#!/usr/bin/env python3
"""Tests of tools/kernel_report.py. One part a run, each a ctest entry:

program  what it makes of recorded output of nvcc and cuobjdump (CUDA 13), with stand-ins for both
nvcc     one file of cuda/ for real; exits 77 (skipped) where there is no nvcc
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "tools/kernel_report.py"
SKIPPED = 77

DROPOUT = "_ZN6elwise4cuda43_GLOBAL__N__8fba07f4_10_dropout_cu_c17cfff1"
ELEMENTWISE = "_ZN6elwise4cuda47_GLOBAL__N__e32c5d90_14_elementwise_cu_5883f0a8"
NORMAL_F32 = f"{DROPOUT}18fill_normal_kernelIfEEvPT_lddNS_12RandomStreamEb"
DROPOUT_BF16 = (f"{DROPOUT}14dropout_kernelI13__nv_bfloat16EEvPKT_PS4_ljNS0_9ComputeOfIS4_E4typeENS_12RandomStreamEb")
WHERE_SCALAR = f"{ELEMENTWISE}12where_kernelIfLi1EEEvPKbPKT_S7_PS5_lNS0_14DeviceLoopNestILi3EEE"
WHERE_WIDE = f"{ELEMENTWISE}12where_kernelIfLi4EEEvPKbPKT_S7_PS5_lNS0_14DeviceLoopNestILi3EEE"
ADD = f"{ELEMENTWISE}13binary_kernelIfLNS_8BinaryOpE0ELi4EEEvPKT_S6_PS4_lNS0_14DeviceLoopNestILi2EEE"
QUERIES = ("_ZN6elwise4cuda9ea_series21causal_queries_kernelIfLi6EEEvNS1_7TensorsIT_EEPKNS0_9ComputeOfIS4_E4typeEPS8_"
           "NS1_8SequenceE")

NO_SPILLS = "    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
FIRST = "ptxas info    : 272 bytes gmem"
# fill_normal_kernel was compiled with -maxrregcount=24, so that it spills.
PTXAS = {
    NORMAL_F32: """    96 bytes stack frame, 80 bytes spill stores, 96 bytes spill loads
ptxas info    : Used 24 registers, used 0 barriers, 96 bytes cumulative stack size
ptxas info    : Compile time = 32.201 ms
ptxas info    : Function properties for __internal_trig_reduction_slowpathd
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads""",
    DROPOUT_BF16: f"{NO_SPILLS}\nptxas info    : Used 29 registers, used 0 barriers",
    WHERE_SCALAR: f"{NO_SPILLS}\nptxas info    : Used 32 registers, used 0 barriers",
    WHERE_WIDE: f"{NO_SPILLS}\nptxas info    : Used 30 registers, used 0 barriers",
    ADD: f"{NO_SPILLS}\nptxas info    : Used 32 registers, used 0 barriers",
    QUERIES: f"{NO_SPILLS}\nptxas info    : Used 168 registers, used 1 barriers, 12288 bytes smem",
}
SASS = {
    NORMAL_F32: """\
        /*0000*/                   LDC R1, c[0x0][0x28] ;                           /* 0x00000a00ff017b82 */
        /*0060*/                   ULDC.64 UR4, c[0x0][0x220] ;                     /* 0x0000880000047ab9 */
        /*0470*/                   LDL.64 R4, [R1] ;                                /* 0x0000000001047983 */
        /*0b00*/              @!P1 STG.E desc[UR8][R10.64+0x4], R5 ;                /* 0x000004050a009986 */
        /*0b20*/                   STG.E.128 desc[UR8][R10.64], R4 ;                /* 0x000000040a007986 */""",
    DROPOUT_BF16: """\
        /*0470*/              @!P5 LDG.E.U16 R5, desc[UR6][R16.64] ;                /* 0x000000061005d981 */
        /*0690*/                   LDG.E.128 R8, desc[UR6][R16.64] ;                /* 0x0000000610087981 */
        /*0b00*/              @!P1 STG.E.U16 desc[UR8][R10.64+0x4], R5 ;            /* 0x000004050a009986 */""",
    WHERE_SCALAR: """\
        /*17c0*/                   LDG.E.U8 R12, desc[UR10][R24.64] ;               /* 0x0000000a180c7981 */
        /*1890*/                   LDG.E R13, desc[UR10][R10.64] ;                  /* 0x0000000a0a0d7981 */
        /*1a00*/                   STG.E desc[UR10][R10.64], R13 ;                  /* 0x0000000d0a007986 */""",
    WHERE_WIDE: """\
        /*19a0*/               @P4 LDG.E.U8 R24, desc[UR10][R8.64+0x1] ;            /* 0x0000010a08184981 */
        /*1c30*/                   LDG.E.128 R8, desc[UR10][R14.64] ;               /* 0x0000000a0e087981 */
        /*1c50*/                   LDG.E R11, desc[UR10][R14.64] ;                  /* 0x0000000a0e0b7981 */
        /*1f60*/              @!P3 STG.E.128 desc[UR10][R14.64], R8 ;               /* 0x000000080e00b986 */
        /*2010*/              @!P5 STG.E desc[UR10][R14.64+0x4], R9 ;               /* 0x000004090e00d986 */""",
    ADD: """\
        /*1c30*/                   LDG.E.128.CONSTANT R8, desc[UR10][R14.64] ;      /* 0x0000000a0e087981 */
        /*1f60*/              @!P3 STG.E.128 desc[UR10][R14.64], R8 ;               /* 0x000000080e00b986 */""",
    QUERIES: """\
        /*06e0*/                   LDG.E.128.CONSTANT R24, desc[UR8][R76.64] ;      /* 0x0000000a101b7981 */
        /*0700*/                   LDS.128 R8, [R18] ;                              /* 0x0000000a12087981 */
        /*0b60*/               @P6 STG.E desc[UR8][R76.64+0xc], R27 ;               /* 0x0000001b12007986 */""",
}

# The output file, then the log on stderr; in a file of its own because of its length.
NVCC = """#!{python}
import pathlib, sys
arguments = sys.argv[1:]
pathlib.Path({folder!r}, "arguments").write_text(" ".join(arguments))
pathlib.Path(arguments[arguments.index("-o") + 1]).touch()
sys.stderr.write(pathlib.Path({folder!r}, "ptxas").read_text())
"""
CUOBJDUMP = """#!{python}
import pathlib, sys
assert sys.argv[1] == "-sass" and pathlib.Path(sys.argv[2]).exists()
sys.stdout.write(pathlib.Path({folder!r}, "sass").read_text())
"""


def traffic_line(kernel: str, case: str, moved: int, part: str) -> str:
    """Of a kernel that must move 600 bytes."""
    return json.dumps({"case": case, "kernel": kernel, "dtype": "f32", "fewest_read": 400, "fewest_written": 200,
                       "bytes_read": moved - 200, "bytes_written": 200, "sector_bytes_read": 320,
                       "sector_bytes_written": 192,
                       "cuda_kernels": [{"name": part, "launches": 1, "bytes_read": moved - 200,
                                         "bytes_written": 200}]})


WHERE_RUN = ("void elwise::cuda::(anonymous namespace)::where_kernel<float, 4>(bool const*, float const*, "
             "float const*, float*, long, elwise::cuda::DeviceLoopNest<3>)")


class Program(unittest.TestCase):
    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.nvcc = self.executable("nvcc", NVCC)
        self.cuobjdump = self.executable("disassembler", CUOBJDUMP)
        (self.folder / "path").mkdir()
        (self.folder / "path/c++filt").symlink_to(str(shutil.which("c++filt")))

    def executable(self, name: str, text: str) -> pathlib.Path:
        path = self.folder / name
        path.write_text(text.format(python=sys.executable, folder=str(self.folder)))
        path.chmod(0o755)
        return path

    def run_on(self, kernels: list[str], *arguments: object, disassembles: bool = True) -> subprocess.CompletedProcess:
        """With a file that has these kernels, and a PATH that has c++filt only."""
        entries = [f"ptxas info    : Compiling entry function '{kernel}' for 'sm_90'\n"
                   f"ptxas info    : Function properties for {kernel}\n{PTXAS[kernel]}\n" for kernel in kernels]
        (self.folder / "ptxas").write_text(FIRST + "\n" + "".join(entries))
        functions = [f"\t\tFunction : {kernel}\n\t.headerflags\t@\"EF_CUDA_SM90\"\n{SASS[kernel]}\n"
                     for kernel in kernels]
        (self.folder / "sass").write_text("\n\tcode for sm_90\n" + "".join(functions))
        command = [sys.executable, PROGRAM, "--nvcc", self.nvcc, "some.cu", *arguments]
        if disassembles:
            command += ["--cuobjdump", self.cuobjdump]
        return subprocess.run(list(map(str, command)), capture_output=True, text=True,
                              env={**os.environ, "PATH": str(self.folder / "path")})

    def rows(self, run: subprocess.CompletedProcess) -> dict[str, list[str]]:
        """Of a Markdown table: the first cell -> the others."""
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in run.stdout.splitlines() if line]
        return {row[0]: row[1:] for row in rows}

    def test_a_row_stands_for_all_f32_forms(self) -> None:
        run = self.run_on([DROPOUT_BF16, WHERE_SCALAR, WHERE_WIDE, ADD], "--markdown", "--arch=sm_80")
        self.assertEqual((run.returncode, run.stderr), (0, ""))
        rows = self.rows(run)
        self.assertEqual(rows["kernel"], ["file", "forms", "registers", "spills", "shared", "load", "store"])
        self.assertEqual(rows["where_kernel<float>"], ["some.cu", "2", "32", "0", "0", "128", "128"])
        self.assertEqual(rows["binary_kernel<float>"], ["some.cu", "1", "32", "0", "0", "128", "128"])
        self.assertEqual(len(rows), 4)
        arguments = (self.folder / "arguments").read_text()
        self.assertIn("-arch=sm_80 ", arguments)
        self.assertIn(f"-I{ROOT} some.cu", arguments)

    def test_all_forms(self) -> None:
        run = self.run_on([DROPOUT_BF16, WHERE_SCALAR, WHERE_WIDE], "--markdown", "--all")
        self.assertEqual(run.returncode, 0, run.stderr)
        rows = self.rows(run)
        self.assertEqual(rows["dropout_kernel<__nv_bfloat16>"], ["some.cu", "1", "29", "0", "0", "128", "16"])
        self.assertEqual(rows["where_kernel<float, 1>"], ["some.cu", "1", "32", "0", "0", "32", "32"])
        self.assertEqual(rows["where_kernel<float, 4>"], ["some.cu", "1", "30", "0", "0", "128", "128"])

    def test_broken_rules_are_faults(self) -> None:
        log = self.folder / "log.json"
        run = self.run_on([NORMAL_F32, QUERIES, ADD], "--json", log)
        self.assertEqual(run.returncode, 1)
        faults = ["some.cu: fill_normal_kernel<float> spills 176 bytes",
                  "some.cu: causal_queries_kernel<float>: its widest store has 32 bits, expected 128"]
        self.assertEqual(run.stderr.splitlines(), [f"kernel_report: {fault}" for fault in faults])
        lines = [line.split() for line in run.stdout.splitlines()]
        self.assertIn(["causal_queries_kernel<float>", "some.cu", "1", "168", "0", "12288", "128", "32"], lines)
        self.assertIn(["fill_normal_kernel<float>", "some.cu", "1", "24", "176", "0", "none", "128"], lines)
        written = json.loads(log.read_text())
        self.assertEqual(written["faults"], faults)
        self.assertEqual(written["arch"], "sm_90")
        self.assertEqual([kernel["name"] for kernel in written["kernels"]],
                         ["binary_kernel<float, (BinaryOp)0, 4>", "causal_queries_kernel<float, 6>",
                          "fill_normal_kernel<float>"])

    def test_an_unaligned_form_alone_is_a_fault(self) -> None:
        run = self.run_on([WHERE_SCALAR])
        self.assertEqual(run.returncode, 1)
        self.assertIn("where_kernel<float>: its widest load has 32 bits", run.stderr)

    def test_only_some_kernels(self) -> None:
        run = self.run_on([NORMAL_F32, ADD], "--kernels=^binary_.*BinaryOp", "--markdown")
        self.assertEqual((run.returncode, run.stderr), (0, ""))
        self.assertEqual(list(self.rows(run))[2:], ["binary_kernel<float>"])

    def test_without_a_disassembler(self) -> None:
        run = self.run_on([QUERIES], "--markdown", disassembles=False)
        self.assertEqual(run.returncode, 0)
        self.assertEqual(run.stderr.count("\n"), 1)
        self.assertIn("pip install nvidia-cuda-cuobjdump", run.stderr)
        self.assertEqual(self.rows(run)["causal_queries_kernel<float>"][-2:], ["-", "-"])

    def test_traffic_is_that_of_the_contracts_worst_case(self) -> None:
        traffic = self.folder / "traffic.json"
        cases = [("small", 600), ("large", 720), ("large", 780)]  # two calls in one case count together
        lines = [traffic_line("where", case, moved, WHERE_RUN) for case, moved in cases]
        traffic.write_text("\n".join([*lines, traffic_line("softmax_forward", "other", 600, "void other<float>(int)")]))
        run = self.run_on([WHERE_WIDE, ADD], "--markdown", "--traffic", traffic)
        self.assertEqual((run.returncode, run.stderr), (0, ""))
        rows = self.rows(run)
        self.assertEqual(rows["where_kernel<float>"][-2:], ["1.25", "where"])
        self.assertEqual(rows["binary_kernel<float>"][-2:], ["-", "-"])
        self.assertEqual(rows["where"], ["large", "0.0", "1.25", "0.85", "where_kernel<float, 4> 1.25"])
        self.assertNotIn("softmax_forward", rows)
        every = self.run_on([WHERE_WIDE, ADD], "--markdown", "--traffic", traffic, "--all")
        self.assertEqual(every.stdout.count("| where |"), 3)  # and the kernel's row

    def test_too_much_traffic_is_a_fault(self) -> None:
        traffic = self.folder / "traffic.json"
        traffic.write_text(traffic_line("where", "large", 906, WHERE_RUN))
        run = self.run_on([WHERE_WIDE], "--traffic", traffic)
        self.assertEqual(run.returncode, 1)
        self.assertEqual(run.stderr, "kernel_report: where moves 1.51 times the fewest bytes, expected at most 1.5\n")

    def test_errors(self) -> None:
        failing = self.executable("failing", "#!/bin/sh\necho 'x.cu(3): error: expected a type' >&2\nexit 2\n")
        nonsense = self.folder / "nonsense"
        nonsense.write_text('{"case": 1}\n')
        cases: list[tuple[list[object], int, str]] = [
            (["--arch=volta"], 2, "expected sm_80, sm_90 or the like, got 'volta'"),
            (["--kernels=("], 2, "not a regular expression"),
            (["--jobs=0"], 2, "at least 1"),
            (["--nonsense"], 2, "--nonsense"),
            (["--kernels=absent"], 1, "no kernel's name has absent"),
            (["--nvcc", self.folder / "absent"], 1, "nvcc does not run"),
            (["--nvcc", failing], 1, "nvcc: some.cu: x.cu(3): error: expected a type"),
            (["--cuobjdump", failing], 1, "cuobjdump: x.cu(3): error: expected a type"),
            (["--traffic", self.folder / "absent"], 1, "absent: No such file"),
            (["--traffic", nonsense], 1, "not what kernel_traffic writes"),
            (["--json", self.folder / "absent" / "x.json"], 1, "cannot write"),
        ]
        for arguments, status, message in cases:
            with self.subTest(arguments=arguments):
                run = self.run_on([ADD], *arguments, disassembles="--cuobjdump" not in arguments)
                self.assertEqual(run.returncode, status, run.stderr)
                self.assertIn(message, run.stderr)
                self.assertEqual(run.stderr.count("\n"), 1, run.stderr)


class Nvcc(unittest.TestCase):
    def test_a_file_of_the_tree(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            log = pathlib.Path(folder) / "log.json"
            run = subprocess.run([sys.executable, PROGRAM, ROOT / "cuda/dropout.cu", "--json", log],
                                 capture_output=True, text=True)
            self.assertEqual(run.returncode, 0, run.stderr)
            written = json.loads(log.read_text())
        self.assertIn("dropout_kernel<float> ", run.stdout)
        kernels = {kernel["name"]: kernel for kernel in written["kernels"]}
        for element in ("float", "double", "__nv_bfloat16"):
            kernel = kernels[f"dropout_kernel<{element}>"]
            self.assertEqual(kernel["source"], "dropout.cu")
            self.assertTrue(8 <= kernel["registers"] <= 255, kernel)
            if "no cuobjdump" not in run.stderr:
                self.assertEqual((kernel["load_bits"], kernel["store_bits"]), (128, 128))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["program", "nvcc"])
    part = parser.parse_args().part
    sys.path.insert(0, str(PROGRAM.parent))
    from kernel_resources import find_nvcc

    if part == "nvcc" and find_nvcc(None) is None:
        print("skipped: no nvcc was found")
        sys.exit(SKIPPED)
    suite = unittest.defaultTestLoader.loadTestsFromTestCase({"program": Program, "nvcc": Nvcc}[part])
    result = unittest.TextTestRunner().run(suite)
    sys.exit(0 if result.wasSuccessful() and result.testsRun > 0 else 1)


if __name__ == "__main__":
    main()
