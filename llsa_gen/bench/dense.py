# SPDX-License-Identifier: Apache-2.0
"""Dense attention: whole, or some query rows against all keys, from whose time that of all rows follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from llsa_gen.bench.statistics import spread_rows
from llsa_gen.evidence.calls import leaves, upward_gradients
from llsa_gen.workloads import Qkv


@dataclass(frozen=True)
class Dense:
    """Dense attention of some query rows.

    Both passes take time in proportion to the rows; reading k and v and writing their gradients, which every slice
    pays anew, is less than a hundredth of that at a thousand rows.

    Attributes:
        qkv: Contiguous q of the rows, k and v.
        factor: All rows over these.
    """

    qkv: Qkv
    factor: float

    @property
    def rows(self) -> int:
        """How many query rows it has."""
        return int(self.qkv[0].shape[2])

    def forward(self) -> tuple[Tensor, ...]:
        """The output."""
        return (F.scaled_dot_product_attention(*self.qkv),)

    def o_grad(self) -> Tensor:
        """A gradient that reaches the output, the same on every call."""
        q, _, v = self.qkv
        return upward_gradients(v.new_empty((*q.shape[:3], v.shape[-1])))[0]

    def training(self) -> Callable[[], Sequence[Tensor]]:
        """A call that gives the gradients of q, k and v."""
        given, o_grad = leaves(self.qkv), self.o_grad()

        def call() -> Sequence[Tensor]:
            with torch.enable_grad():
                return torch.autograd.grad(F.scaled_dot_product_attention(*given), given, o_grad)

        return call


def dense_of(qkv: Qkv, rows: int) -> Dense:
    """Dense attention of some rows, evenly spread; of all of them when there are no more."""
    q, k, v = qkv
    tokens = q.shape[2]
    if rows >= tokens:
        return Dense(qkv, 1.0)
    chosen = q[:, :, list(spread_rows(tokens, rows))].contiguous()
    return Dense((chosen, k, v), tokens / rows)
