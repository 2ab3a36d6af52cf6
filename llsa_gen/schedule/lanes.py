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
QUERY_LANES = 64
"""Most of a tile of queries past which keys move; what moves is read once for all of them."""
KEY_LANES = 32
"""Most of a tile of keys past which queries move; it holds two operands and two sums."""
SCORE_BYTES = 16 * 1024
"""A part of the first-level data cache, 32 KiB and more on any processor of today; keys and values stream past it."""


def tile_of(kernel: KernelKey, spec: Spec) -> Schedule:
    """The tile of a kernel: lanes that share their lists, and whole blocks of what moves past them."""
    if kernel.kind == "merge_grad_kv":
        return Schedule(keys=min(TILE_LANES, _sharers(kernel, spec)), threads=1)
    if kernel.kind == "attend_grad_kv":
        lanes = min(KEY_LANES, _sharers(kernel, spec))
        return Schedule(_length(lanes, spec) // 2, lanes, threads=1)
    most = QUERY_LANES if kernel.kind in ("attend", "attend_grad_q") else TILE_LANES
    lanes = min(most, _sharers(kernel, spec))
    return Schedule(lanes, _length(lanes, spec), threads=1)


def tiles(kernel: KernelKey, spec: Spec) -> Iterator[Schedule]:
    """The tile of choice and those with a half, twice and four times as much held at once, where they differ."""
    chosen = tile_of(kernel, spec)
    held = "rows" if kernel.kind == "attend_grad_kv" else "keys"
    sizes = {getattr(chosen, held), *(max(spec.block, int(getattr(chosen, held) * part)) for part in (0.5, 2, 4))}
    return (replace(chosen, **{held: size}) for size in sorted(sizes))


def _length(lanes: int, spec: Spec) -> int:
    """How much moves past some lanes at once."""
    return max(spec.block, SCORE_BYTES // (4 * lanes) // spec.block * spec.block)


def _sharers(kernel: KernelKey, spec: Spec) -> int:
    """Most neighbours that can be the lanes of a tile: they share its lists, or are children of one node."""
    arguments = dict(kernel.args)
    if arguments.get("part") in ("fine", "lists", "whole") or arguments.get("parent_topk"):
        return spec.block
    return spec.block**2 if arguments.get("part") == "coarse" and spec.depth > 1 else QUERY_LANES
