# SPDX-License-Identifier: Apache-2.0
"""Tilings of `attend_grad_q`: as those of `attend`, with one more tile of rows and of logits."""

from __future__ import annotations

from llsa_gen.schedule.limits import MATRIX_ROWS
from llsa_gen.schedule.tilings.attend import SegmentTiling
from llsa_gen.schedule.types import Schedule


class AttendGradQTiling(SegmentTiling):
    """One product for the logits, one for their gradients, one for the keys."""

    def shared_bytes(self, schedule: Schedule) -> int:
        row_tile = max(schedule.rows, MATRIX_ROWS)
        moving = schedule.keys * max(schedule.stages, 1)
        own = (row_tile * self.head, row_tile * self.value, row_tile * schedule.keys)
        return self.tile_bytes(*own, moving * self.head, moving * self.value) + self.table_bytes(schedule)

    def products(self, schedule: Schedule) -> tuple[tuple[int, int], ...]:
        row_tile = max(schedule.rows, MATRIX_ROWS)
        return ((row_tile, schedule.keys), (row_tile, self.head))

    def fragment_cells(self, schedule: Schedule) -> int:
        return max(schedule.rows, MATRIX_ROWS) * (2 * schedule.keys + self.head)
