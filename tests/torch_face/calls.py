# SPDX-License-Identifier: Apache-2.0
"""What the tests of the torch ops share: small inputs in every memory layout, and what an error must say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import llsa_gen
from llsa_gen.errors import LlsaError
from llsa_gen.spec import Spec

SPEC = Spec(levels=2, block=16, topk=8, head_dim=64, dtype="fp32")
SMALL = Spec(levels=2, block=4, topk=2, head_dim=16, value_dim=24, dtype="fp32")
SLUG = SPEC.slug
KEYWORDS: dict[str, Any] = {"block_size": SMALL.block, "topk": SMALL.topk, "num_levels": SMALL.levels}
FIELDS = (SMALL.levels, SMALL.block, [*SMALL.topks[:1]], SMALL.enrichment, SMALL.weight)

Inputs = tuple[Tensor, Tensor, Tensor]


def inputs(
    device: torch.device | str = "cpu",
    *,
    length: int = 70,
    batch: int = 2,
    heads: int = 2,
    spec: Spec = SMALL,
    dtype: torch.dtype = torch.float32,
) -> Inputs:
    """Random q, k and v in their plain layout."""
    generator = torch.Generator().manual_seed(length)
    shapes = [(batch, heads, length, dim) for dim in (spec.head_dim, spec.head_dim, spec.dim_v)]
    q, k, v = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
    return q, k, v


def tokens_first(x: Tensor) -> Tensor:
    """The same values, in memory as [B,N,H,D]."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def part_of_wider(x: Tensor) -> Tensor:
    """The same values as a view of a wider tensor, as after a fused projection."""
    return torch.cat([x, x, x], dim=3)[..., x.shape[3] : 2 * x.shape[3]]


def features_apart(x: Tensor) -> Tensor:
    """The same values with a last stride that is not 1."""
    return x.transpose(2, 3).contiguous().transpose(2, 3)


def unaligned(x: Tensor) -> Tensor:
    """The same values at an address that vector loads cannot take."""
    return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)


MEMORY: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda x: x,
    "tokens_first": tokens_first,
    "part_of_wider": part_of_wider,
    "features_apart": features_apart,
    "unaligned": unaligned,
    "broadcast": lambda x: x[:, :1].expand(x.shape),
}


def lists_of(q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
    """The selection of the small spec."""
    return llsa_gen.llsa_select(q, k, **KEYWORDS)


def refused(error: type[LlsaError], call: Callable[[], Any], *words: str) -> str:
    """Asserts that a call is refused in the manner of this project: what, where, and the value or the next step."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert type(caught.value) is error, f"{type(caught.value).__name__}: {message}"
    assert "  where:   " in message and ("  allowed: " in message or "  next:    " in message), message
    assert not any(word in message for word in ("Traceback", "Declaration:", "object is not")), message
    missing = [word for word in words if word not in message]
    assert not missing, f"{missing} not in:\n{message}"
    return message
