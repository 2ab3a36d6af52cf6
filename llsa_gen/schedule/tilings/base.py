# SPDX-License-Identifier: Apache-2.0
"""What a schedule of one kind of kernel is made of, and what it takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from llsa_gen.dtypes import get_dtype
from llsa_gen.ir.types import KernelKey
from llsa_gen.schedule.limits import padded
from llsa_gen.schedule.types import Schedule
from llsa_gen.spec import Spec
from llsa_gen.targets import Target

CPU_ROWS, CPU_KEYS = 64, 64
"""Largest tile of a CPU kernel: with head dim 64 its tiles take 80 KiB, which a second-level cache holds."""


@dataclass(frozen=True)
class Tiling(ABC):
    """The tilings of one kernel of a spec; one subclass per kind of stage.

    Attributes:
        kernel: The kernel.
        spec: What it computes.
    """

    kernel: KernelKey
    spec: Spec

    @abstractmethod
    def space(self, target: Target) -> Iterator[Schedule]:
        """Every schedule worth trying on a target, whether it fits or not."""

    @abstractmethod
    def shared_bytes(self, schedule: Schedule) -> int:
        """Shared memory of one block, in bytes, counted from the allocations of the template."""

    @abstractmethod
    def fragment_cells(self, schedule: Schedule) -> int:
        """32-bit cells that the fragments of a block hold in registers, counted likewise."""

    def rank(self, schedule: Schedule) -> tuple[int, ...]:
        """What to prefer among schedules that fit, the largest first; terms equal for all are left out."""
        return (-schedule.threads,)

    @property
    def item(self) -> int:
        """Bytes of an element of the spec's dtype."""
        return get_dtype(self.spec.dtype).itemsize

    @property
    def head(self) -> int:
        """Columns of a tile of queries or keys."""
        return padded(self.spec.head_dim)

    @property
    def value(self) -> int:
        """Columns of a tile of values or outputs."""
        return padded(self.spec.dim_v)

    @property
    def part(self) -> str:
        """Which part of an attention a kernel does."""
        return str(self.kernel.arg("part"))
