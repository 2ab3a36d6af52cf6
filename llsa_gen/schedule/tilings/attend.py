# SPDX-License-Identifier: Apache-2.0
"""Tilings of `attend`: a tile of queries that share their lists against tiles of keys."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from llsa_gen.schedule.limits import MATRIX_ROWS, warps_across
from llsa_gen.schedule.tilings.base import CPU_KEYS, CPU_ROWS, Tiling, thread_choices
from llsa_gen.schedule.types import Schedule
from llsa_gen.targets import Target

TILE_CHUNKS = 8
"""Chunks of children in a tile beyond which fewer are better: address and weights of each are held in registers. With
16 chunks (block 4) the coarse kernel in fp32 stood at 255 registers on sm_80 and spilled; with 8 it takes 195."""


class SegmentTiling(Tiling):
    """Tiles of queries against tiles of the keys of some segments."""

    def space(self, target: Target) -> Iterator[Schedule]:
        rows = self.row_choices()
        if not target.is_cuda:
            yield Schedule(max(row for row in rows if row <= CPU_ROWS or row == min(rows)), CPU_KEYS, threads=1)
            return
        stages = 1 if self.spec.dtype == "fp32" else 2  # a gathered loop has a static trip count
        for row, keys in product(rows, (128, 64, 32, 16)):
            for threads in thread_choices(row):
                yield Schedule(row, keys, threads, stages)

    def rank(self, schedule: Schedule) -> tuple[int, ...]:
        """Queries that share a key tile first; then few chunks; then key tiles near 64, which leave room for blocks."""
        crowd = max(0, schedule.keys - TILE_CHUNKS * self.spec.block)
        return (min(schedule.rows, 128), -crowd, -abs(schedule.keys - 64), -abs(schedule.threads - 128))

    def divides(self, schedule: Schedule, target: Target) -> bool:
        """As for all; and numbers of a row (its norm, its peak) reach every warp that sums up the row.

        They lie with the warps that hold the logits of the row. Where the template divides products by columns, fewer
        warps side by side over the logits than over the sums would leave some without them: TileLang refuses that.
        """
        if not super().divides(schedule, target):
            return False
        rows, warps = max(schedule.rows, MATRIX_ROWS), schedule.threads // target.warp
        if not (target.is_cuda and self.tensor_cores) or rows >= MATRIX_ROWS * warps:  # divided by rows
            return True
        grouped = self.grouped(schedule, target)
        logits, *sums = (warps_across(*sizes, warps, grouped=grouped) for sizes in self.products(schedule))
        return all(logits >= across for across in sums)

    def copied_bytes(self, schedule: Schedule) -> int:
        return schedule.keys * (self.head + self.value) * self.item

    def row_choices(self) -> tuple[int, ...]:
        """Query counts whose members share every list that a tile reads."""
        block = self.spec.block
        largest = block if self.part == "fine" else 128 if self.spec.depth == 1 else block**2
        return tuple(rows for rows in (128, 64, 32, 16) if rows <= largest) or (block,)

    def table_bytes(self, schedule: Schedule) -> int:
        """Bytes of the table of chunks, of what a coarse kernel leaves out, and of the weights of a tile of keys."""
        lists = self.spec.topks[:1] if self.part == "fine" else self.spec.topks[1:]
        chunks = sum(lists) * max(1, self.spec.block // schedule.keys) + schedule.keys
        return 16 * chunks + self._refined(schedule) + schedule.keys * 4

    def _refined(self, schedule: Schedule) -> int:
        """Bytes of the nodes that are left out, and of the scores that the comparison with them stages."""
        if self.spec.enrichment != "exclude_refined" or self.part == "fine":
            return 0
        groups = {level: max(1, schedule.rows // self.spec.block**level) for level in range(1, self.spec.depth + 1)}
        lists = sum(groups[level] * topk for level, topk in enumerate(self.spec.topks, start=1))
        return int(4 * (lists + max(schedule.rows, MATRIX_ROWS) * schedule.keys))


class AttendTiling(SegmentTiling):
    """One product for the logits, one for the values."""

    def shared_bytes(self, schedule: Schedule) -> int:
        row_tile = max(schedule.rows, MATRIX_ROWS)
        moving = schedule.keys * max(schedule.stages, 1)
        own = (row_tile * self.head, row_tile * schedule.keys)
        return self.tile_bytes(*own, moving * self.head, moving * self.value) + self.table_bytes(schedule)

    def products(self, schedule: Schedule) -> tuple[tuple[int, int], ...]:
        row_tile = max(schedule.rows, MATRIX_ROWS)
        return ((row_tile, schedule.keys), (row_tile, self.value))

    def fragment_cells(self, schedule: Schedule) -> int:
        return max(schedule.rows, MATRIX_ROWS) * (schedule.keys + self.value)
