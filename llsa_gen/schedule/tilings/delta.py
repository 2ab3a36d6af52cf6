# SPDX-License-Identifier: Apache-2.0
"""Tilings of `delta`: as many rows as the threads of a block hold in a few registers each."""

from __future__ import annotations

from collections.abc import Iterator

from llsa_gen.schedule.limits import padded_to_power
from llsa_gen.schedule.tilings.base import CPU_ROWS, Tiling
from llsa_gen.schedule.types import Schedule
from llsa_gen.targets import Target

THREADS = 128
CELLS = 32
"""Features that a thread holds: enough loads in flight, and few registers."""


class DeltaTiling(Tiling):
    """It reads everything once and keeps nothing, so there is little to choose."""

    def space(self, target: Target) -> Iterator[Schedule]:
        if target.is_cuda:
            yield Schedule(THREADS * CELLS // self._width, threads=THREADS)
        else:
            yield Schedule(CPU_ROWS, threads=1)

    def shared_bytes(self, schedule: Schedule) -> int:
        """What the threads of a row exchange when they are of several warps, which no schedule of the space needs."""
        return 0

    def fragment_cells(self, schedule: Schedule) -> int:
        return schedule.rows * self._width

    @property
    def _width(self) -> int:
        return padded_to_power(self.spec.dim_v)
