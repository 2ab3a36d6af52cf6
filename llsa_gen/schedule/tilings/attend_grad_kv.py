# SPDX-License-Identifier: Apache-2.0
"""Tilings of `attend_grad_kv`: a tile of keys that stays against tiles of the queries that attended them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

from llsa_gen.ir.sizes import part_entries
from llsa_gen.schedule.limits import MATRIX_ROWS
from llsa_gen.schedule.tilings.base import CPU_KEYS, CPU_ROWS, Tiling, thread_choices
from llsa_gen.schedule.types import Schedule
from llsa_gen.targets import Target


class AttendGradKVTiling(Tiling):
    """Below the top level the keys of a tile are children of one parent, so that the same queries attended them."""

    def space(self, target: Target) -> Iterator[Schedule]:
        keys = key_choices(self)
        if not target.is_cuda:
            yield Schedule(CPU_ROWS, max(key for key in keys if key <= CPU_KEYS), threads=1)
            return
        for row, key in product((128, 64, 32, 16), keys):
            for threads in thread_choices(key):
                yield Schedule(row, key, threads, stages=1)  # a loop of dynamic extent holds one tile in flight

    def shared_bytes(self, schedule: Schedule) -> int:
        key_tile = max(schedule.keys, MATRIX_ROWS)
        tiles = [size * width for size in (key_tile, schedule.rows) for width in (self.head, self.value)]
        weights = key_tile * schedule.rows
        tables = 8 * schedule.rows + 8 * key_tile + self._takers(schedule) + self._refined(schedule)
        return self.tile_bytes(*tiles, weights, weights) + tables

    def products(self, schedule: Schedule) -> tuple[tuple[int, int], ...]:
        key_tile = max(schedule.keys, MATRIX_ROWS)
        return tuple((key_tile, columns) for columns in (schedule.rows, self.value, self.head))

    def copied_bytes(self, schedule: Schedule) -> int:
        return schedule.rows * (self.head + self.value) * self.item

    def fragment_cells(self, schedule: Schedule) -> int:
        key_tile = max(schedule.keys, MATRIX_ROWS)
        return key_tile * (2 * schedule.rows + self.head + self.value)

    def rank(self, schedule: Schedule) -> tuple[int, ...]:
        """Keys that share a tile of queries first; then tiles of queries near what a mean list fills, at most 64."""
        return (min(schedule.keys, 64), -abs(schedule.rows - self._mean_rows()), -abs(schedule.threads - 128))

    @property
    def level(self) -> int:
        """The level of the keys."""
        if self.part == "all":
            return self.spec.depth
        return int(self.kernel.arg("level")) if self.part == "lists" else 0

    def _mean_rows(self) -> int:
        if self.part == "all":
            return 64
        queries = self.spec.topks[self.level] * self.spec.block ** (self.level + 1)
        return int(min(64, 1 << (queries - 1).bit_length()))

    def _takers(self, schedule: Schedule) -> int:
        """Bytes of the table of takers, which fills whole tiles."""
        if self.part == "all":
            return 0
        chunks = max(1, schedule.rows // int(self.spec.block ** (self.level + 1)))
        return 4 * (part_entries(self.spec, self.level + 1) + chunks)

    def _refined(self, schedule: Schedule) -> int:
        """Bytes of the nodes that are left out, and of the scores that the comparison with them stages."""
        if self.spec.enrichment != "exclude_refined" or not self.level:
            return 0
        groups = max(1, schedule.rows // self.spec.block**self.level)
        return int(4 * (groups * self.spec.topks[self.level - 1] + max(schedule.keys, MATRIX_ROWS) * schedule.rows))


def key_choices(tiling: Tiling) -> tuple[int, ...]:
    """Keys that may make a tile: any nodes of the coarsest level, or parts of the children of one parent."""
    if tiling.part == "all":
        return (128, 64, 32, 16)
    return tuple(keys for keys in (128, 64, 32, 16) if keys <= tiling.spec.block) or (tiling.spec.block,)
