# SPDX-License-Identifier: Apache-2.0
"""How gradients pass through the ops: what is kept of a call, and the op that turns it into gradients.

What is kept is q, k, v, o, the log-sum-exps and the lists where they were given: linear in N, as with any attention.
Pools and selections are computed again, which gives the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llsa_gen.errors import UnsupportedError, explain


@dataclass(frozen=True)
class Differentiation:
    """The backward formula of an attention op.

    Attributes:
        op: Name of the op that computes the gradients.
        has_lists: Whether the lists are an argument, after q, k and v.
    """

    op: str
    has_lists: bool

    def setup(self, ctx: Any, inputs: Sequence[Any], output: tuple[Tensor, Tensor]) -> None:
        """Keeps what the formula needs; runs only where a gradient is wanted."""
        q, k, v, *rest = inputs
        lists = tuple(rest.pop(0)) if self.has_lists else ()
        ctx.save_for_backward(q, k, v, *output, *lists)
        ctx.rest = tuple(rest)
        ctx.set_materialize_grads(False)

    def backward(self, ctx: Any, o_grad: Tensor | None, lse_grad: Tensor | None) -> tuple[Any, ...]:
        """The gradients of the inputs; None for those that need none."""
        q, k, v, o, lse, *lists = ctx.saved_tensors
        needed = [bool(is_needed) for is_needed in ctx.needs_input_grad[:3]]
        others = [[None] * len(given) if isinstance(given, list) else None for given in ctx.needs_input_grad[3:]]
        if o_grad is None and lse_grad is None:
            return (None, None, None, *others)
        incoming = torch.zeros_like(o) if o_grad is None else o_grad
        op = getattr(torch.ops.llsa_gen, self.op)
        found = op(incoming, lse_grad, q, k, v, o, lse, lists, needed, *ctx.rest)
        gradients = [gradient if is_needed else None for gradient, is_needed in zip(found, needed, strict=True)]
        return (*gradients, *others)


def refuse_second_derivatives(*_: Any) -> Any:
    """The backward formula of the op that computes gradients.

    Raises:
        UnsupportedError: Always.
    """
    what = "there are no second derivatives of LLSA attention"
    hint = "leave out create_graph=True, or use llsa_gen.reference.attention for small problems"
    raise UnsupportedError(explain(what, where="backward of the gradients of torch.ops.llsa_gen", hint=hint))
