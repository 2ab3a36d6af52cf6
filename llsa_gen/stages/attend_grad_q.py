# SPDX-License-Identifier: Apache-2.0
"""Attend grad q: the gradient of every query over the keys that it attended.

    p_ij = w_j e^{s_ij - lse_i}        s_grad_ij = p_ij (o_grad_i . v_j - delta_i)
    q_grad_i = scale sum_j s_grad_ij k_j

over the keys of all segments together, as a multiset. A stage that is not final leaves the sum so far in
``q_grad_carry`` (fp32, already scaled), and one with ``carry`` adds to it. Nothing flows through pooled queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from llsa_gen.ir import names
from llsa_gen.ir.types import Piece, Plan
from llsa_gen.stages.attend import SegmentStage

if TYPE_CHECKING:
    from llsa_gen.ir.sizes import Number, Sizes


@dataclass(frozen=True, slots=True)
class AttendGradQ(SegmentStage):
    """The gradient of q over some segments."""

    kind: ClassVar[str] = "attend_grad_q"
    template: ClassVar[str] = "attend_grad_q"

    def reads(self, plan: Plan) -> tuple[Piece, ...]:
        shared = tuple(Piece(name, 0) for name in ("q", "o_grad", "lse", names.DELTA))
        carried = (Piece(names.Q_GRAD_CARRY, 0),) if self.carry else ()
        return (*shared, *self.keys_read(plan), *carried)

    def writes(self, plan: Plan) -> tuple[Piece, ...]:
        return (Piece(names.gradient("q", 0) if self.final else names.Q_GRAD_CARRY, 0),)

    def flops(self, sizes: Sizes) -> Number:
        """Three products per query and key: the logit, the gradient of its weight, and the key into the sum."""
        per_key = 2 * (2 * sizes.symbol("D") + sizes.symbol("Dv"))
        return sizes.symbol("B") * sizes.symbol("H") * sizes.symbol("Nq") * self.keys_scored(sizes) * per_key
