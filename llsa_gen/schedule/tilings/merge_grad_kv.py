# SPDX-License-Identifier: Apache-2.0
"""Tilings of `merge_grad_kv`: a tile of keys whose parts are added up."""

from __future__ import annotations

from collections.abc import Iterator

from llsa_gen.schedule.limits import MATRIX_ROWS
from llsa_gen.schedule.tilings.attend_grad_kv import key_choices
from llsa_gen.schedule.tilings.base import Tiling
from llsa_gen.schedule.types import Schedule
from llsa_gen.targets import Target


class MergeGradKVTiling(Tiling):
    """There is nothing to choose: narrow tiles, as the work is all reading."""

    def space(self, target: Target) -> Iterator[Schedule]:
        keys = min(MATRIX_ROWS, *key_choices(self))
        yield Schedule(keys=keys, threads=128 if target.is_cuda else 1)

    def shared_bytes(self, schedule: Schedule) -> int:
        return 0 if self.part == "fine" else 4 * schedule.keys

    def fragment_cells(self, schedule: Schedule) -> int:
        return schedule.keys * (self.spec.head_dim + self.spec.dim_v)
