# SPDX-License-Identifier: Apache-2.0
"""Invert index: from the nodes that every row selected to the rows that selected every node (CSR to CSC).

    rows_l[offsets_l[j] : offsets_l[j + 1]]  =  the rows r with j in idx_l[r], ascending, as often as j occurs there

Entries of -1 are skipped; behind the last entry there is -1, so that no shape depends on data. Integers only: the
result is the same bit by bit on every run.

A list of more than S entries is cut into parts of S, for kernels that give each part to one block of threads:
``part_offsets_l[j]`` counts the parts of long lists before node j and ``part_nodes_l`` names the node of each part.

As three launches: ``count`` counts for every chunk of rows how often each node occurs in it, ``scan`` turns the counts
into the places where the entries of a chunk go, ``scatter`` writes them, all chunks side by side and each in the order
of its rows, moving the places on as it goes. Short lists are done in one launch, ``whole``: one block of threads keeps
the counts of all chunks of a head in its shared memory. What is short is said in `llsa_gen.ir.sizes`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from llsa_gen.ir import names
from llsa_gen.ir.types import KernelKey, Piece, Plan, Stage

if TYPE_CHECKING:
    from llsa_gen.ir.sizes import Number, Sizes

Phase = Literal["whole", "count", "scan", "scatter"]


@dataclass(frozen=True, slots=True)
class InvertIndex(Stage):
    """One launch of the inversion of one level's lists.

    Attributes:
        level: The level of the lists and of their nodes.
        phase: Which part of the work.
        in_parts: Whether it also says how long lists are cut.
    """

    kind: ClassVar[str] = "invert_index"
    template: ClassVar[str] = "invert_index"

    level: int
    phase: Phase = "whole"
    in_parts: bool = False

    def reads(self, plan: Plan) -> tuple[Piece, ...]:
        return tuple(Piece(name, self.level) for name in self.inputs)

    def writes(self, plan: Plan) -> tuple[Piece, ...]:
        return tuple(Piece(name, self.level) for name in self.outputs)

    def flops(self, sizes: Sizes) -> Number:
        """Only integers are added and compared."""
        return 0

    def kernel(self, plan: Plan) -> KernelKey:
        """Every size is an argument of the launch, so that all specs share four kernels."""
        return KernelKey(self.kind, (("phase", self.phase),))

    @property
    def tables(self) -> tuple[str, ...]:
        """What all phases together produce."""
        found = (names.offsets(self.level), names.rows(self.level))
        return (*found, names.part_offsets(self.level), names.part_nodes(self.level)) if self.in_parts else found
