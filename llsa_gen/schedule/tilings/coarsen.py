# SPDX-License-Identifier: Apache-2.0
"""Tilings of `coarsen`: one block of threads reduces what lies below one node of the pass's top level."""

from __future__ import annotations

from collections.abc import Iterator

from llsa_gen.schedule.tilings.base import Tiling
from llsa_gen.schedule.types import Schedule
from llsa_gen.targets import Target


class CoarsenTiling(Tiling):
    """There is nothing to choose."""

    def space(self, target: Target) -> Iterator[Schedule]:
        yield Schedule(threads=128 if target.is_cuda else 1)

    def shared_bytes(self, schedule: Schedule) -> int:
        return self.fragment_cells(schedule) * 4

    def fragment_cells(self, schedule: Schedule) -> int:
        return int(self.spec.block ** (int(self.kernel.arg("levels")) - 1)) * int(self.kernel.arg("width"))
