# SPDX-License-Identifier: Apache-2.0
"""The public functions, called for the fields of a spec: attention, lists, attention with lists, and gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from llsa_gen import llsa_attend, llsa_attention, llsa_select
from llsa_gen.spec import Spec
from llsa_gen.workloads import Qkv

Results = tuple[Tensor, Tensor]
"""`(o, lse)`, or the gradients that reach them."""


class Trained(NamedTuple):
    """What a call and its backward pass give.

    Attributes:
        results: `(o, lse)`.
        gradients: Those of q, k and v.
    """

    results: Results
    gradients: tuple[Tensor, ...]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them."""
        return (*self.results, *self.gradients)


def attention(spec: Spec, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Results:
    """`(o, lse)` of `llsa_attention`."""
    return llsa_attention(
        q,
        k,
        v,
        block_size=spec.block,
        topk=spec.topks,
        num_levels=spec.depth,
        scale=scale,
        enrichment=spec.enrichment,
        weight=spec.weight,
        return_lse=True,
    )


def select(spec: Spec, q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
    """The lists of `llsa_select`."""
    return llsa_select(q, k, block_size=spec.block, topk=spec.topks, num_levels=spec.depth)


def attend(
    spec: Spec, q: Tensor, k: Tensor, v: Tensor, idx: Sequence[Tensor], *, scale: float | None = None
) -> Results:
    """`(o, lse)` of `llsa_attend`."""
    o, lse = llsa_attend(
        q,
        k,
        v,
        idx,
        block_size=spec.block,
        scale=scale,
        enrichment=spec.enrichment,
        weight=spec.weight,
        return_lse=True,
    )
    return o, lse


def leaves(qkv: Qkv) -> Qkv:
    """The same tensors, of which gradients are wanted."""
    q, k, v = (x.detach().requires_grad_() for x in qkv)
    return q, k, v


@torch.enable_grad()
def train(spec: Spec, qkv: Qkv, upward: Results) -> Trained:
    """A forward and a backward pass for given gradients of o and lse; not for use in inference mode."""
    given = leaves(qkv)
    o, lse = attention(spec, *given)
    return Trained((o.detach(), lse.detach()), torch.autograd.grad([o, lse], given, upward))


def upward_gradients(v: Tensor, seed: int = 0) -> Results:
    """Standard normal gradients of o, [B,H,N,Dv] in the dtype of v, and of lse, fp32 [B,H,N]."""
    generator = torch.Generator().manual_seed(seed)
    o_grad = torch.randn(v.shape, generator=generator).to(device=v.device, dtype=v.dtype)
    return o_grad, torch.randn(v.shape[:3], generator=generator).to(v.device)
