# SPDX-License-Identifier: Apache-2.0
"""Tiles of CPU kernels: neighbours that share what moves past them, with scores that stay in the first-level cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from llsa_gen.ir.types import KernelKey
from llsa_gen.schedule.types import Schedule
from llsa_gen.spec import Spec

TILE_LANES = 16
"""Members of a tile: fp32 numbers in the widest vector register."""
QUERY_LANES = 32
"""Most of a tile of queries past which keys move: what moves is read once for all of them, and what they hold, queries,
scores and sums, has to stay in the first-level cache beside it. 16 and 64 took as long or up to 3 % longer; in blocks
of 32, 16 took 2 % longer, and 6 % in the gradient of q."""
KEY_LANES = 32
"""Most of a tile of keys past which queries move; it holds two operands and two sums."""
SCORE_BYTES = 16 * 1024
"""A part of the first-level data cache, 32 KiB and more on any processor of today; keys and values stream past it."""

LANES = (4, 8, 16, 32, 64)
"""Members of a tile that are worth trying: one narrow register to four wide ones."""
HELD_BYTES = tuple(1024 * size for size in (8, 16, 32, 64))
"""Bytes of scores that are worth trying, of first- and of second-level caches."""
DELTA_ROWS = (16, 64, 256, 1024)
"""Queries of a task where each is a short sum by itself."""
STRIP = 16
"""Most rows that meet a tile at once; queries come in whole strips. It is a rule of the templates for CPUs, which hold
it as a constant that a test compares."""


def joins(spec: Spec) -> bool:
    """Whether one kernel attends pooled keys and tokens: where the queries that share a list of tokens fill a vector.

    What a tile has of the pooled keys then stays in the first-level cache, and its queries are transposed once: 3 to
    5 % less time. Smaller blocks have two kernels, because many more queries share the pooled keys: the gradient of q
    in tiles of 8 queries took 1.7 times as long as in tiles of 16.
    """
    return spec.block >= TILE_LANES


def tile_of(kernel: KernelKey, spec: Spec) -> Schedule:
    """The tile of a kernel: lanes that share their lists, and whole blocks of what moves past them."""
    most = {"attend": QUERY_LANES, "attend_grad_q": QUERY_LANES, "attend_grad_kv": KEY_LANES}
    lanes = min(most.get(kernel.kind, TILE_LANES), _sharers(kernel, spec))
    return _tile(kernel, spec, lanes, SCORE_BYTES)


def tiles(kernel: KernelKey, spec: Spec) -> Iterator[Schedule]:
    """Every tile worth trying, the one of choice among them."""
    chosen, sharers = tile_of(kernel, spec), _sharers(kernel, spec)
    lanes = [count for count in LANES if count <= sharers]
    if kernel.kind in ("coarsen", "invert_index"):
        found = []
    elif kernel.kind == "delta":
        found = [replace(chosen, rows=rows) for rows in DELTA_ROWS]
    elif kernel.kind in ("select", "merge_grad_kv"):
        found = [_tile(kernel, spec, count, SCORE_BYTES) for count in lanes]
    else:
        found = [_tile(kernel, spec, count, held) for count in lanes for held in HELD_BYTES]
    return iter(sorted({chosen, *found}))


def _tile(kernel: KernelKey, spec: Spec, lanes: int, held: int) -> Schedule:
    """The tile of some lanes that holds so many bytes of scores, one block or strip at least."""
    length = max(spec.block, held // (4 * lanes) // spec.block * spec.block)
    if kernel.kind == "merge_grad_kv":
        return Schedule(keys=lanes, threads=1)
    if kernel.kind == "attend_grad_kv":  # it holds scores and their gradients
        return Schedule(max(STRIP, length // 2), lanes, threads=1)
    return Schedule(lanes, length, threads=1)


def _sharers(kernel: KernelKey, spec: Spec) -> int:
    """Most neighbours that can be the lanes of a tile: they share its lists, or are children of one node."""
    arguments = dict(kernel.args)
    if arguments.get("part") in ("fine", "lists", "whole") or arguments.get("parent_topk"):
        return spec.block
    return spec.block**2 if arguments.get("part") == "coarse" and spec.depth > 1 else max(LANES)
