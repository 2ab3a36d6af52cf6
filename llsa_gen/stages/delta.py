# SPDX-License-Identifier: Apache-2.0
"""Delta: the part of the logits' gradients that all keys of a query share.

    delta_i = o_i . o_grad_i - lse_grad_i                            (fp32)

With ``p_ij = w_j e^{s_ij - lse_i}``, the gradient of a logit is ``s_grad_ij = p_ij (o_grad_i . v_j - delta_i)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from llsa_gen.ir import names
from llsa_gen.ir.types import KernelKey, Piece, Plan, Stage

if TYPE_CHECKING:
    from llsa_gen.ir.sizes import Number, Sizes


@dataclass(frozen=True, slots=True)
class Delta(Stage):
    """One row of o and of its gradient to one number."""

    kind: ClassVar[str] = "delta"
    template: ClassVar[str] = "delta"

    def reads(self, plan: Plan) -> tuple[Piece, ...]:
        return (Piece("o", 0), Piece("o_grad", 0), Piece("lse_grad", 0))

    def writes(self, plan: Plan) -> tuple[Piece, ...]:
        return (Piece(names.DELTA, 0),)

    def flops(self, sizes: Sizes) -> Number:
        """A multiplication and an addition per feature."""
        return 2 * sizes.symbol("B") * sizes.symbol("H") * sizes.symbol("Nq") * sizes.symbol("Dv")

    def kernel(self, plan: Plan) -> KernelKey:
        return KernelKey(self.kind, ())
