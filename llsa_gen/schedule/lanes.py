# SPDX-License-Identifier: Apache-2.0
"""Tiles of CPU kernels: the members of a tile are vector lanes, and its scores stay in the first-level cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from llsa_gen.ir.types import KernelKey
from llsa_gen.schedule.types import Schedule
from llsa_gen.spec import Spec

TILE_LANES = 16
"""Members of a tile: fp32 numbers in the widest vector register."""
SCORE_BYTES = 16 * 1024
"""A part of the first-level data cache, 32 KiB and more on any processor of today; keys and values stream past it."""


LANES = (4, 8, 16, 32, 64)
"""Members of a tile that are worth trying: one narrow register to four wide ones."""
HELD_BYTES = tuple(1024 * size for size in (8, 16, 32, 64))
"""Bytes of scores that are worth trying, of first- and of second-level caches."""
DELTA_ROWS = (16, 64, 256, 1024)
"""Queries of a task where each is a short sum by itself."""
WHOLE = 16
"""Queries of a part are whole strips of at most so many rows, see `llsa_gen.jit.lanes`."""


def tile_of(kernel: KernelKey, spec: Spec) -> Schedule:
    """The tile of a kernel: lanes that share their lists, and whole blocks of what moves past them."""
    lanes = min(TILE_LANES, spec.block) if _shares_block(kernel) else TILE_LANES
    length = _length(spec, lanes, SCORE_BYTES)
    if kernel.kind == "attend_grad_kv":
        return Schedule(length // 2, lanes, threads=1)
    if kernel.kind == "merge_grad_kv":
        return Schedule(keys=lanes, threads=1)
    return Schedule(lanes, length, threads=1)


def tiles(kernel: KernelKey, spec: Spec) -> Iterator[Schedule]:
    """Every tile worth trying, the one of choice among them."""
    chosen = tile_of(kernel, spec)
    lanes = [count for count in LANES if _may_share(kernel, spec, count)]
    if kernel.kind in ("coarsen", "invert_index"):
        found = []
    elif kernel.kind == "delta":
        found = [replace(chosen, rows=rows) for rows in DELTA_ROWS]
    elif kernel.kind == "select":
        found = [replace(chosen, rows=count) for count in lanes]
    elif kernel.kind == "merge_grad_kv":
        found = [replace(chosen, keys=count) for count in lanes]
    elif kernel.kind == "attend_grad_kv":
        sizes = ((count, _length(spec, count, held)) for count in lanes for held in HELD_BYTES)
        found = [replace(chosen, keys=count, rows=max(WHOLE, length // 2)) for count, length in sizes]
    else:
        found = [replace(chosen, rows=count, keys=_length(spec, count, held)) for count in lanes for held in HELD_BYTES]
    return iter(sorted({chosen, *found}))


def _length(spec: Spec, lanes: int, held: int) -> int:
    """Whole blocks of rows of scores that some bytes hold, one at least."""
    return max(spec.block, held // (4 * lanes) // spec.block * spec.block)


def _may_share(kernel: KernelKey, spec: Spec, lanes: int) -> bool:
    """Whether so many lanes can be a tile: what shares a list divides a block, or a block of blocks."""
    if _shares_block(kernel):
        return spec.block % lanes == 0
    is_walk = kernel.kind in ("attend", "attend_grad_q")
    return not is_walk or spec.depth == 1 or spec.block**2 % lanes == 0


def _shares_block(kernel: KernelKey) -> bool:
    """Whether the lanes are members of one block: they share its list, or are its children."""
    arguments = dict(kernel.args)
    return arguments.get("part") in ("fine", "lists") or bool(arguments.get("parent_topk"))
