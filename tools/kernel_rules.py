"""What CUDA kernels are held to, and the exceptions with their reasons."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from kernel_resources import Kernel, without

WIDE_BITS = 128  # 16 bytes, the widest access of a thread
MOST_MOVED = 1.5  # times the fewest bytes

# Kernels, by their name with its arguments, that may load or store less than 16 bytes at a time.
_FEW_CHUNKS = "a thread per sum walks over few chunks; the lanes of a warp read neighbours"
_TRANSPOSE = "a warp reads and writes 128 neighbouring bytes, turned in shared memory"
_DIRECT = "rare: answers key by key for queries whose weights all but vanish"
_SORT = "moves indices of 32 bits, each to a place of its own"
_ITEMS = "the form for rows that are not whole vectors: an element a thread, its index of 64 bits beside it"
_STATE = "a channel a thread: its moments are neighbours, and few"
_ONE_VALUE = "writes one value for many elements read"
_LANES = "a lane has a channel, its rows in registers: a warp writes 128 neighbouring bytes"
NARROW_LOADS = {
    r"^(combine|add)_\w+_kernel<": _FEW_CHUNKS,
    r"^reduce_kernel<.*Largest<": "the second launch, over few partial results",
    r"^transpose_kernel<": _TRANSPOSE,
    r"^count_appended_kernel": "one number for each batch entry",
    r"^direct_\w+_kernel<": _DIRECT,
    r"^(count_digits|move_elements|running_sums)_kernel": _SORT,
    r"^(gather|index_select)_kernel<unsigned int": _ITEMS,
    r"^walk_columns_kernel<": "a thread walks down a column, in order; the lanes of a warp read neighbours",
    r"^ea_references_kernel<": "a lane has a channel and looks for its nearest key; most stop after some rows",
    r"^step_kernel<": _STATE,
    r"^(gradient_scale|mean_loss)_kernel<": "one number",
    r"^softmax_backward_kernel<": "the form for rows that are not aligned; cuDNN has the others",
}
NARROW_STORES = {
    **NARROW_LOADS,
    r"^reduce_kernel<": _ONE_VALUE,
    r"^(head_sums|channel_sums|row_products|sum_chunks|sum_row_chunks|cross_entropy_forward)_kernel<": _ONE_VALUE,
    r"^cumsum_columns_kernel<\(Pass\)0": "writes the sum of a chunk of rows",
    r"^ea_\w+_kernel<": _LANES,
    r"^(multiply_adds|read)_kernel": "writes nothing: what it could write keeps its work from being left out",
}

# Kernels of the contracts that may move more than MOST_MOVED times what cost() says.
_SECOND_PASS = "sums of chunks first, then a second pass over the rows"
_TILES = "every tile of queries asks for all keys and values, which the second-level cache holds"
MOVES_MORE = {
    "layer_norm_forward": "every row asks for weight and bias, which the first-level cache holds",
    "layer_norm_backward": "the same, and sums of rows on their way to dweight and dbias",
    "cumsum": _SECOND_PASS,
    "ea_series_forward": _SECOND_PASS,
    "ea_series_backward": "two passes over the rows, with two values of each row between them",
    "ea_forward": _TILES,
    "ea_backward": _TILES + "; one kernel for queries, one for keys",
    "linear_attention_forward": _SECOND_PASS + "; a state for every 128 rows",
    "linear_attention_backward": _SECOND_PASS + ", for dq, dk and dv each",
    "tiled_attention_forward": _TILES,
    "tiled_attention_backward": _TILES + "; one kernel for queries, one for keys",
    "aft_bias_gradient": "every thread asks whether any answer is direct",
}


NUMBER = r"-?[0-9]+u?l*|true|false"
ENUMERATOR = r"\(\w+\)[0-9]+"


def operation_of(name: str) -> str:
    """What forms for other widths, orders and the like share: "binary_kernel<float, (BinaryOp)0>"."""
    return without(name, NUMBER)


def family_of(name: str) -> str:
    """What forms for other operations share too: "binary_kernel<float>"."""
    return without(name, f"{NUMBER}|{ENUMERATOR}")


def excused(name: str, exceptions: dict[str, str]) -> bool:
    return any(re.search(pattern, name) for pattern in exceptions)


def aligned_width(kernels: Iterable[Kernel], field: str) -> int | None:
    """The widest access of each operation, as unaligned operands have a form of their own, and of these the narrowest.
    0 where there is none; None where it is not known."""
    widest: dict[str, int | None] = {}
    for kernel in kernels:
        operation, bits = operation_of(kernel.name), getattr(kernel, field)
        widest[operation] = bits if widest.get(operation) is None else max(widest[operation], bits)
    widths = [bits for bits in widest.values() if bits != 0]
    return None if None in widths else min(widths, default=0)


def faults_of(kernels: Sequence[Kernel], moved: dict[str, float]) -> list[str]:
    """A line for each broken rule. `moved`: kernel of a contract -> bytes moved / fewest."""
    lines = [f"{kernel.source}: {kernel.name} spills {kernel.spill_bytes} bytes" for kernel in kernels
             if kernel.spill_bytes > 0]
    forms: dict[tuple[str, str], list[Kernel]] = {}
    for kernel in kernels:
        if kernel.is_f32:
            forms.setdefault((kernel.source, operation_of(kernel.name)), []).append(kernel)
    for (source, name), same in forms.items():
        for field, what, exceptions in (("load_bits", "load", NARROW_LOADS), ("store_bits", "store", NARROW_STORES)):
            bits = aligned_width(same, field)
            if bits and bits < WIDE_BITS and not excused(name, exceptions):
                lines.append(f"{source}: {name}: its widest {what} has {bits} bits, expected {WIDE_BITS}")
    lines += [f"{kernel} moves {ratio:.2f} times the fewest bytes, expected at most {MOST_MOVED}"
              for kernel, ratio in moved.items() if ratio > MOST_MOVED and kernel not in MOVES_MORE]
    return lines
