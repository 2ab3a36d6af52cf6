# SPDX-License-Identifier: Apache-2.0
"""Solving a schedule: all tilings that fit the target, ranked by what they keep busy.

The shared memory and the registers of a tiling are counted from the tiles that the templates allocate; the ranking
prefers tiles that many queries share (a key that is loaded once serves `rows` queries), then wide key tiles. Terms that
are equal for all candidates are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from llsa_gen.dtypes import get_dtype
from llsa_gen.errors import InfeasibleError, explain
from llsa_gen.ir.types import KernelKey
from llsa_gen.schedule.types import Schedule
from llsa_gen.spec import Spec
from llsa_gen.targets import Target

MATRIX_ROWS = 16
"""Rows of the smallest tensor-core product; tiles of fewer queries are padded to it."""
REGISTER_SHARE = {"wgmma": 0.6, "mma": 0.4}
"""Part of a thread's registers that the fragments counted here may take. Addresses and temporaries need the rest, and
without warp-group products so do operands, which then pass through registers. Read off ptxas: with 0.6 on sm_80 and
sm_100a the coarse attention kernel stood at 255 registers and began to spill; with these shares nothing spills."""
TILE_CHUNKS = 8
"""Chunks of children in a tile of attention beyond which fewer are better: address and weights of each are held in
registers. With 16 chunks (block 4) the coarse kernel in fp32 stood at 255 registers on sm_80 and spilled; with 8 it
takes 195."""
CPU_ROWS, CPU_KEYS = 64, 64
"""Largest tile of a CPU kernel: with head dim 64 its tiles take 80 KiB, which a second-level cache holds."""


def solve(kernel: KernelKey, spec: Spec, target: Target) -> Schedule:
    """The best schedule of a kernel for a target.

    Raises:
        InfeasibleError: No tiling fits; names the limit that binds the smallest one.
    """
    candidates = tuple(space(kernel, spec, target))
    fitting = [schedule for schedule in candidates if _excess(kernel, spec, target, schedule) is None]
    if fitting:
        return max(fitting, key=lambda schedule: _rank(kernel, spec, schedule))
    smallest = min(candidates, key=lambda schedule: shared_bytes(kernel, spec, schedule))
    limit, value, bound = _excess(kernel, spec, target, smallest) or ("tiling", 0, 0)
    what = f"no schedule of the kernel {kernel.label} fits {target.name}: {limit} binds"
    hint = "lower head_dim, value_dim, topk or block, or build for another target"
    raise InfeasibleError(
        explain(what, where=spec.slug, value=value, allowed=f"at most {bound}", hint=hint),
        limit=limit,
        value=value,
        bound=bound,
    )


def space(kernel: KernelKey, spec: Spec, target: Target) -> Iterator[Schedule]:
    """Every schedule worth trying for a kernel on a target, whether it fits or not."""
    if kernel.kind == "coarsen":
        yield Schedule(threads=128 if target.is_cuda else 1)
        return
    rows, keys = _row_choices(kernel, spec), (128, 64, 32, 16)
    if not target.is_cuda:
        yield Schedule(max(row for row in rows if row <= CPU_ROWS or row == min(rows)), CPU_KEYS, threads=1)
        return
    for row, key, threads in product(rows, keys, (128, 256)):
        if threads == 128 or row >= 128:
            yield Schedule(row, key, threads, stages=1 if spec.dtype == "fp32" else _stages(kernel))


def fits(kernel: KernelKey, spec: Spec, target: Target, schedule: Schedule) -> bool:
    """Whether a schedule keeps the limits of a target."""
    return _excess(kernel, spec, target, schedule) is None


def shared_bytes(kernel: KernelKey, spec: Spec, schedule: Schedule) -> int:
    """Shared memory of one block, in bytes, counted from the allocations of the template."""
    item = get_dtype(spec.dtype).itemsize
    if kernel.kind == "coarsen":
        return int(spec.block ** (int(kernel.arg("levels")) - 1)) * int(kernel.arg("width")) * 4
    row_tile = max(schedule.rows, MATRIX_ROWS)
    head, value = padded(spec.head_dim), padded(spec.dim_v)
    flight = max(schedule.stages, 1)
    if kernel.kind == "select":
        kept = row_tile * kept_tile(int(kernel.arg("topk"))) * 8
        extra = _select_tables(kernel, spec, schedule) + schedule.keys * 4
        return (row_tile + schedule.keys * flight) * head * item + kept + extra
    tiles = schedule.keys * (head + value) * item * flight
    table = 16 * _chunks(kernel, spec, schedule) + _refined_tables(kernel, spec, schedule)
    return row_tile * head * item + row_tile * schedule.keys * item + tiles + table + schedule.keys * 4


def fragment_registers(kernel: KernelKey, spec: Spec, schedule: Schedule) -> float:
    """32-bit registers per thread that hold the fragments of a block."""
    row_tile = max(schedule.rows, MATRIX_ROWS)
    if kernel.kind == "coarsen":
        cells = int(spec.block ** (int(kernel.arg("levels")) - 1)) * int(kernel.arg("width"))
    elif kernel.kind == "select":
        kept = 3 * row_tile * kept_tile(int(kernel.arg("topk"))) if _streams(kernel, spec, schedule) else 0
        cells = 2 * row_tile * schedule.keys + kept
    else:
        cells = row_tile * (schedule.keys + padded(spec.dim_v))
    return cells / schedule.threads


def padded(width: int) -> int:
    """A feature width rounded up to what a matrix instruction takes."""
    return -(-width // MATRIX_ROWS) * MATRIX_ROWS


def kept_tile(topk: int) -> int:
    """Columns of the running best of the selection: a power of two of at least 8."""
    return max(8, 1 << (topk - 1).bit_length())


def _row_choices(kernel: KernelKey, spec: Spec) -> tuple[int, ...]:
    """Query counts whose members share every list that a tile reads."""
    if kernel.kind == "select":
        return (128, 64, 32, 16) if kernel.arg("parent_topk") == 0 else (spec.block,)
    if kernel.arg("part") == "fine":
        return (spec.block,)
    largest = 128 if spec.depth == 1 else min(128, spec.block**2)
    return tuple(rows for rows in (128, 64, 32, 16) if rows <= largest)


def _stages(kernel: KernelKey) -> int:
    """Gathered loops have a static trip count and may hold two tiles in flight; loops over all nodes may not."""
    return 2 if kernel.kind == "attend" else 1


def _chunks(kernel: KernelKey, spec: Spec, schedule: Schedule) -> int:
    fine = kernel.arg("part") == "fine"
    lists = spec.topks[:1] if fine else spec.topks[1:]
    return sum(lists) * max(1, spec.block // schedule.keys) + schedule.keys


def _select_tables(kernel: KernelKey, spec: Spec, schedule: Schedule) -> int:
    """Bytes of the table of chunks, and of what warps that divide the columns exchange to find a row's best."""
    parents = int(kernel.arg("parent_topk"))
    chunks = parents * max(1, spec.block // schedule.keys) + schedule.keys if parents else 1
    divided = spec.dtype != "fp32" and max(schedule.rows, MATRIX_ROWS) * 2 < schedule.threads
    return 4 * chunks + (2 * 4 * schedule.threads if divided else 0)


def _refined_tables(kernel: KernelKey, spec: Spec, schedule: Schedule) -> int:
    """Bytes of the nodes that a coarse kernel leaves out, and of the scores that the comparison with them stages."""
    if spec.enrichment != "exclude_refined" or kernel.arg("part") == "fine":
        return 0
    lists = sum(max(1, schedule.rows // spec.block**level) * topk for level, topk in enumerate(spec.topks, start=1))
    return int(4 * (lists + max(schedule.rows, MATRIX_ROWS) * schedule.keys))


def _streams(kernel: KernelKey, spec: Spec, schedule: Schedule) -> bool:
    parents = int(kernel.arg("parent_topk"))
    return parents == 0 or parents * spec.block > schedule.keys


def _excess(kernel: KernelKey, spec: Spec, target: Target, schedule: Schedule) -> tuple[str, float, float] | None:
    """The limit that a schedule breaks with its value and bound, or None."""
    if not target.is_cuda:
        return None
    shared = shared_bytes(kernel, spec, schedule)
    if shared > target.shared_per_block:
        return "shared memory per block (bytes)", shared, target.shared_per_block
    registers, bound = fragment_registers(kernel, spec, schedule), _register_share(target) * target.registers_per_thread
    if registers > bound:
        return "registers per thread held by fragments", registers, bound
    return None


def _register_share(target: Target) -> float:
    """On sm_100 TileLang emits mma.sync, not tcgen05, so it counts as a machine without warp-group products."""
    return REGISTER_SHARE["wgmma" if target.has("wgmma") else "mma"]


def _rank(kernel: KernelKey, spec: Spec, schedule: Schedule) -> tuple[int, int, int, int]:
    """Queries that share a key tile first; then few chunks; then key tiles near 64, which leave room for blocks."""
    crowd = max(0, schedule.keys - TILE_CHUNKS * spec.block) if kernel.kind == "attend" else 0
    return (min(schedule.rows, 128), -crowd, -abs(schedule.keys - 64), -schedule.threads)
