# SPDX-License-Identifier: Apache-2.0
"""Merge grad kv: adds up the parts of the gradients of one level, in a fixed order, and finishes them.

    k_grad_l[j] = (sum over the parts of j) / c_l(j) + k_grad_{l+1}[j // b]            (likewise v)

At level L it writes every node; below it only the children of nodes with a long inverted list, next to those that
`attend_grad_kv` has already written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from llsa_gen.ir.types import KernelKey, Piece, Plan
from llsa_gen.stages.attend_grad_kv import GradKVStage

if TYPE_CHECKING:
    from llsa_gen.ir.sizes import Number, Sizes


@dataclass(frozen=True, slots=True)
class MergeGradKV(GradKVStage):
    """The end of the gradients that came in parts."""

    kind: ClassVar[str] = "merge_grad_kv"
    template: ClassVar[str] = "merge_grad_kv"

    def reads(self, plan: Plan) -> tuple[Piece, ...]:
        begun = () if self.segment.keys == "all" else self.gradients
        return (*self.parts, *self.part_tables, *self.above, *begun)

    def writes(self, plan: Plan) -> tuple[Piece, ...]:
        return self.gradients

    def flops(self, sizes: Sizes) -> Number:
        """An addition per feature of a part."""
        heads = sizes.symbol("B") * sizes.symbol("Hk")
        if self.segment.keys == "all":
            rows = sizes.nodes(self.level, "k") * sizes.symbol("G")
        else:
            rows = sizes.parts(self.level + 1) * sizes.symbol("b")
        return heads * rows * (sizes.symbol("D") + sizes.symbol("Dv"))

    def kernel(self, plan: Plan) -> KernelKey:
        return KernelKey(self.kind, (("part", self.part),))
