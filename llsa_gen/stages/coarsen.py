# SPDX-License-Identifier: Apache-2.0
"""Coarsen: mean pools of one operand over one or several levels of the pyramid.

Node ``j`` of level ``l`` covers tokens ``j * b**l`` up to ``min((j + 1) * b**l, N)``, in number ``c_l(j)``:

    sum_l[j]  = sum of sum_{l-1}[c] over the children c of j         (fp32; sum_0 is the operand)
    pool_l[j] = sum_l[j] / c_l(j)                                    (rounded once to the input dtype)

A pass covers ``b**levels`` rows in one block of threads. A later pass starts from the fp32 sums of the level below,
never from rounded means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from llsa_gen.ir import names
from llsa_gen.ir.types import KernelKey, Piece, Plan, Stage

if TYPE_CHECKING:
    from llsa_gen.ir.sizes import Number, Sizes


@dataclass(frozen=True, slots=True)
class Coarsen(Stage):
    """One pass over an operand.

    Attributes:
        operand: ``q``, ``k`` or ``v``.
        source_level: 0 reads the tokens, a higher level the fp32 sums of that level.
        levels: The levels whose means it writes, ascending and without gaps.
        emit_sums: Whether it also writes the sums of its top level, as its last output.
    """

    kind: ClassVar[str] = "coarsen"
    template: ClassVar[str] = "coarsen"

    operand: Literal["q", "k", "v"]
    source_level: int
    levels: tuple[int, ...]
    emit_sums: bool = False

    def reads(self, plan: Plan) -> tuple[Piece, ...]:
        return (Piece(self.source, self.source_level),)

    def writes(self, plan: Plan) -> tuple[Piece, ...]:
        means = tuple(Piece(names.rows_of(self.outputs, self.operand, level), level) for level in self.levels)
        top = self.levels[-1]
        return (*means, Piece(names.sums(self.operand, top), top)) if self.emit_sums else means

    @property
    def source(self) -> str:
        """The tensor it reads."""
        return names.sums(self.operand, self.source_level) if self.source_level else self.operand

    def flops(self, sizes: Sizes) -> Number:
        """One addition per row below a level and one division per node, for every feature."""
        side = names.side(self.operand)
        rows: Number = 0
        for below, level in zip((self.source_level, *self.levels[:-1]), self.levels, strict=True):
            rows = rows + sizes.nodes(below, side) + sizes.nodes(level, side)
        heads = sizes.symbol("H" if side == "q" else "Hk")
        return sizes.symbol("B") * heads * sizes.symbol(names.width(self.operand)) * rows

    def kernel(self, plan: Plan) -> KernelKey:
        return KernelKey(
            self.kind,
            (
                ("width", plan.spec.dim_v if self.operand == "v" else plan.spec.head_dim),
                ("source", "sums" if self.source_level else "tokens"),
                ("levels", len(self.levels)),
                ("emit_sums", int(self.emit_sums)),
            ),
        )
