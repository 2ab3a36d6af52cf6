# SPDX-License-Identifier: Apache-2.0
"""Tilings of `select`: a tile of query nodes against tiles of candidates."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from llsa_gen.schedule.limits import MATRIX_ROWS, kept_tile
from llsa_gen.schedule.tilings.base import CPU_KEYS, CPU_ROWS, Tiling
from llsa_gen.schedule.types import Schedule
from llsa_gen.targets import Target


class SelectTiling(Tiling):
    """Below the top level the rows of a tile are the children of one node: they share their candidates."""

    def space(self, target: Target) -> Iterator[Schedule]:
        rows = (self.spec.block,) if self.parents else (128, 64, 32, 16)
        if not target.is_cuda:
            yield Schedule(max(row for row in rows if row <= CPU_ROWS or row == min(rows)), CPU_KEYS, threads=1)
            return
        for row, keys, threads in product(rows, (128, 64, 32, 16), (128, 256)):
            if threads == 128 or row >= 128:
                yield Schedule(row, keys, threads, stages=1)

    def shared_bytes(self, schedule: Schedule) -> int:
        row_tile = max(schedule.rows, MATRIX_ROWS)
        kept = row_tile * kept_tile(self.topk) * 8
        extra = self._tables(schedule) + schedule.keys * 4
        moving = schedule.keys * max(schedule.stages, 1)
        return self.tile_bytes(row_tile * self.head, moving * self.head) + kept + extra

    def products(self, schedule: Schedule) -> tuple[tuple[int, int], ...]:
        return ((max(schedule.rows, MATRIX_ROWS), schedule.keys),)

    def copied_bytes(self, schedule: Schedule) -> int:
        return schedule.keys * self.head * self.item

    def fragment_cells(self, schedule: Schedule) -> int:
        row_tile = max(schedule.rows, MATRIX_ROWS)
        streams = not self.parents or self.parents * self.spec.block > schedule.keys
        return 2 * row_tile * schedule.keys + (3 * row_tile * kept_tile(self.topk) if streams else 0)

    def rank(self, schedule: Schedule) -> tuple[int, ...]:
        """Queries that share a key tile first, then key tiles near 64, which leave room for more blocks."""
        return (min(schedule.rows, 128), -abs(schedule.keys - 64), -schedule.threads)

    @property
    def topk(self) -> int:
        """Entries of a list."""
        return int(self.kernel.arg("topk"))

    @property
    def parents(self) -> int:
        """Entries of a list one level up; 0 at the top."""
        return int(self.kernel.arg("parent_topk"))

    def _tables(self, schedule: Schedule) -> int:
        """Bytes of the table of chunks, and of what warps that divide the columns exchange to find a row's best."""
        chunks = self.parents * max(1, self.spec.block // schedule.keys) + schedule.keys if self.parents else 1
        divided = self.spec.dtype != "fp32" and max(schedule.rows, MATRIX_ROWS) * 2 < schedule.threads
        return 4 * chunks + (2 * 4 * schedule.threads if divided else 0)
