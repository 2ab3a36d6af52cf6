# SPDX-License-Identifier: Apache-2.0
"""Tilings of `invert_index`: only the threads of a block are to choose."""

from __future__ import annotations

from collections.abc import Iterator

from llsa_gen.ir.sizes import SHORT_NODES
from llsa_gen.ir.tensors import CHUNKS
from llsa_gen.schedule.tilings.base import Tiling
from llsa_gen.schedule.types import Schedule
from llsa_gen.targets import Target

PREFERRED = {"count": 256, "scan": 1024, "scatter": 128, "whole": 512}
"""Threads by phase. A head has one block that scans, so it should be large. A step of scattering compares each thread
with all others of its chunk, which takes about as long as its reads of the cursors at 128 and grows with the square; in
one launch of 512 threads a chunk has 16."""
TABLES = {"count": 0, "scan": 2, "scatter": 1, "whole": 3}
"""32-bit cells of shared memory of a thread, by phase."""
COUNTS = {"whole": CHUNKS * SHORT_NODES}
"""32-bit cells of shared memory for counts, by phase."""


class InvertIndexTiling(Tiling):
    """Every thread of a block takes one entry, or one node, at a time."""

    def space(self, target: Target) -> Iterator[Schedule]:
        for threads in (64, 128, 256, 512, 1024) if target.is_cuda else (1,):
            yield Schedule(threads=threads)

    def shared_bytes(self, schedule: Schedule) -> int:
        return 4 * (COUNTS.get(self.phase, 0) + TABLES[self.phase] * schedule.threads)

    def fragment_cells(self, schedule: Schedule) -> int:
        """Nothing is spread over the threads; the scan keeps what it read of a node, 32 cells a thread."""
        return 0

    def rank(self, schedule: Schedule) -> tuple[int, ...]:
        return (-abs(schedule.threads - PREFERRED[self.phase]),)

    @property
    def phase(self) -> str:
        """Which phase a kernel does."""
        return str(self.kernel.arg("phase"))
