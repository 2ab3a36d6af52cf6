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


def tile_of(kernel: KernelKey, spec: Spec) -> Schedule:
    """The tile of a kernel: lanes that share their lists, and whole blocks of what moves past them."""
    lanes = min(TILE_LANES, spec.block) if _shares_block(kernel) else TILE_LANES
    length = max(spec.block, SCORE_BYTES // (4 * lanes) // spec.block * spec.block)
    if kernel.kind == "attend_grad_kv":
        return Schedule(length // 2, lanes, threads=1)
    if kernel.kind == "merge_grad_kv":
        return Schedule(keys=lanes, threads=1)
    return Schedule(lanes, length, threads=1)


def tiles(kernel: KernelKey, spec: Spec) -> Iterator[Schedule]:
    """The tile of choice and those with a half, twice and four times as much held at once, where they differ."""
    chosen = tile_of(kernel, spec)
    held = "rows" if kernel.kind == "attend_grad_kv" else "keys"
    sizes = {getattr(chosen, held), *(max(spec.block, int(getattr(chosen, held) * part)) for part in (0.5, 2, 4))}
    return (replace(chosen, **{held: size}) for size in sorted(sizes))


def _shares_block(kernel: KernelKey) -> bool:
    """Whether the lanes are members of one block: they share its list, or are its children."""
    arguments = dict(kernel.args)
    return arguments.get("part") in ("fine", "lists") or bool(arguments.get("parent_topk"))
