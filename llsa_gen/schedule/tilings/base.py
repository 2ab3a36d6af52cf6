# SPDX-License-Identifier: Apache-2.0
"""What a schedule of one kind of kernel is made of, and what it takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from llsa_gen.dtypes import get_dtype
from llsa_gen.ir.types import KernelKey
from llsa_gen.schedule.limits import GROUP_WARPS, MATRIX_ROWS, SWIZZLE_BYTES, TILE_ALIGNMENT, share, tile_widths
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

    def products(self, schedule: Schedule) -> tuple[tuple[int, int], ...]:
        """Rows and columns of every matrix product of the kernel, which all warps of a block divide."""
        return ()

    def copied_bytes(self, schedule: Schedule) -> int:
        """Bytes that a block copies for one step of its pipelined loop; each copy keeps its address in registers."""
        return 0

    def grouped(self, schedule: Schedule, target: Target) -> bool:
        """Whether the products are warp-group ones: TileLang takes those wherever the rows suffice."""
        rows = min((rows for rows, _ in self.products(schedule)), default=0)
        enough = rows >= MATRIX_ROWS * GROUP_WARPS and schedule.threads % (target.warp * GROUP_WARPS) == 0
        return self.tensor_cores and target.has("wgmma") and enough

    def divides(self, schedule: Schedule, target: Target) -> bool:
        """Whether the warps of a block can divide every product evenly; exact products can be divided anyhow."""
        return not (target.is_cuda and self.tensor_cores) or all(self._shares(schedule, target))

    def operand_registers(self, schedule: Schedule, target: Target) -> int:
        """Registers of a thread for the widest operand of a product; warp groups read theirs from shared memory."""
        if not self.tensor_cores or self.grouped(schedule, target):
            return 0
        bytes_of_step = max(self._shares(schedule, target), default=0) * MATRIX_ROWS * self.item
        return bytes_of_step // (4 * target.warp)

    def _shares(self, schedule: Schedule, target: Target) -> list[int]:
        """Columns of every product that a warp has, 0 where the warps cannot divide it."""
        warps, grouped = schedule.threads // target.warp, self.grouped(schedule, target)
        return [share(rows, columns, warps, grouped=grouped) for rows, columns in self.products(schedule)]

    def tile_bytes(self, *cells: int) -> int:
        """Shared memory of tiles that are multiplied, in bytes, with what lies unused before each of them."""
        if not self.tensor_cores:
            return self.item * sum(cells)
        whole = (-(-count * self.item // TILE_ALIGNMENT) for count in cells)
        return TILE_ALIGNMENT * (1 + sum(whole))

    def rank(self, schedule: Schedule) -> tuple[int, ...]:
        """What to prefer among schedules that fit, the largest first; terms equal for all are left out."""
        return (-schedule.threads,)

    @property
    def item(self) -> int:
        """Bytes of an element of the spec's dtype."""
        return get_dtype(self.spec.dtype).itemsize

    @property
    def tensor_cores(self) -> bool:
        """Whether a GPU multiplies on tensor cores, which would round fp32 operands."""
        return self.spec.dtype != "fp32"

    @property
    def ragged(self) -> bool:
        """Whether operands on tensor cores come from tiles whose rows are no whole `SWIZZLE_BYTES`."""
        return self.tensor_cores and any(width * self.item % SWIZZLE_BYTES for width in (self.head, self.value))

    @property
    def head(self) -> int:
        """Columns of a tile of queries or keys."""
        return tile_widths(self.spec.head_dim, self.spec.dim_v)[0]

    @property
    def value(self) -> int:
        """Columns of a tile of values or outputs."""
        return tile_widths(self.spec.head_dim, self.spec.dim_v)[1]

    @property
    def part(self) -> str:
        """Which part of an attention a kernel does."""
        return str(self.kernel.arg("part"))


def thread_choices(rows: int) -> tuple[int, ...]:
    """Threads of a GPU block for a tile of so many rows: small tiles may be too narrow for four warps to divide."""
    return (64, 128) if rows < MATRIX_ROWS * GROUP_WARPS else (128, 256) if rows >= 128 else (128,)
