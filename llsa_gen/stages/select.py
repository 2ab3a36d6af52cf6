# SPDX-License-Identifier: Apache-2.0
"""Select: for every query node of a level, the K key nodes with the largest scores.

    score(r, j) = pool_l(q)[r] . pool_l(k)[j]                 (fp32, no scale, no weight; NaN ranks as -inf)
    idx_l[r]    = the min(K_l, candidates) best, ties to the lowest id, then -1

The candidates are all nodes at the top level, and below it the children that exist of the nodes in row ``r // b`` of
the list one level up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from llsa_gen.ir import names
from llsa_gen.ir.types import KernelKey, Piece, Plan, Stage

if TYPE_CHECKING:
    from llsa_gen.ir.sizes import Number, Sizes


@dataclass(frozen=True, slots=True)
class Select(Stage):
    """The selection of one level.

    Attributes:
        level: The level of the query and key nodes.
        candidates: ``all`` nodes of the level, or the ``children`` of the list one level up.
    """

    kind: ClassVar[str] = "select"
    template: ClassVar[str] = "select"

    level: int
    candidates: Literal["all", "children"]

    def reads(self, plan: Plan) -> tuple[Piece, ...]:
        means = tuple(Piece(names.rows_of(self.inputs, operand, self.level), self.level) for operand in ("q", "k"))
        parents = (Piece(names.lists(self.level + 1), self.level + 1),) if self.candidates == "children" else ()
        return (*means, *parents)

    def writes(self, plan: Plan) -> tuple[Piece, ...]:
        return (Piece(names.lists(self.level), self.level),)

    def flops(self, sizes: Sizes) -> Number:
        """A dot product per query node and candidate; comparisons are not counted."""
        flops = score_flops(sizes.nodes(self.level, "q"), sizes.candidates(self.level), sizes.symbol("D"))
        return sizes.symbol("B") * sizes.symbol("H") * flops

    def kernel(self, plan: Plan) -> KernelKey:
        topks = plan.spec.topks
        parent = topks[self.level] if self.candidates == "children" else 0
        return KernelKey(self.kind, (("topk", topks[self.level - 1]), ("parent_topk", parent)))


def score_flops(rows: Number, candidates: Number, head_dim: Number) -> Number:
    """Flops of the scores of ``rows`` query nodes, each against ``candidates`` key nodes."""
    return 2 * head_dim * rows * candidates
