# SPDX-License-Identifier: Apache-2.0
"""The kinds of attention that are compared: dense, LLSA, and LLSA without one of its two ingredients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from llsa_gen.ops import llsa_attention

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From q, k and v [B,H,N,D] to o [B,H,N,D]."""

ARMS: dict[str, dict[str, str] | None] = {
    "dense": None,
    "llsa": {"enrichment": "overlap", "weight": "c"},
    "no-enrichment": {"enrichment": "none", "weight": "c"},
    "no-reweighting": {"enrichment": "overlap", "weight": "1"},
}
"""By name: what an arm changes in LLSA; None is exact attention of all tokens."""

TITLES = {
    "dense": "dense (SDPA)",
    "llsa": "LLSA",
    "no-enrichment": "LLSA, no enrichment",
    "no-reweighting": "LLSA, no reweighting",
}


def fields_of(arm: str) -> dict[str, str] | None:
    """The fields of the LLSA spec that an arm sets, or None for dense attention."""
    return ARMS[arm]


@dataclass(frozen=True)
class Llsa:
    """LLSA with everything but the tensors chosen."""

    levels: int
    block: int
    k: int
    enrichment: str
    weight: str

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return llsa_attention(
            q,
            k,
            v,
            block_size=self.block,
            topk=self.k,
            num_levels=self.levels,
            enrichment=self.enrichment,
            weight=self.weight,
        )


def attention_of(arm: str, *, levels: int, block: int, k: int) -> Attention:
    """The attention of an arm; the hierarchy means nothing to the dense one."""
    fields = fields_of(arm)
    return F.scaled_dot_product_attention if fields is None else Llsa(levels, block, k, **fields)
