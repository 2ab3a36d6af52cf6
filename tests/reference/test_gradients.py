# SPDX-License-Identifier: Apache-2.0
"""The reference's gradients: equal to finite differences, with frozen lists and of the whole thing away from ties."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from llsa_gen import reference
from llsa_gen.reference import node_count
from llsa_gen.spec import ENRICHMENTS, Spec
from llsa_gen.workloads import clustered_qkv, random_qkv
from tests.strategies import damaged, leaves

SPECS = {
    f"{enrichment} {weight} {levels}": Spec(
        levels=levels, block=4, topk=2, head_dim=16, value_dim=24, dtype="fp32", enrichment=enrichment, weight=weight
    )
    for enrichment in ENRICHMENTS
    for weight, levels in (("c", 1), ("c", 3), ("b**l / (1 + l)", 2))
}
EACH_SPEC = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
WIDE = torch.float64


def frozen(spec: Spec, idx: tuple[Tensor, ...]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Attention as a function of q, k and v alone."""
    return lambda q, k, v: reference.attend(q, k, v, idx, spec, scale=0.3)


@EACH_SPEC
@pytest.mark.parametrize("length", [3, 21])  # test_oracles.py does it element by element, for one spec
def test_gradcheck_with_frozen_lists(spec: Spec, length: int) -> None:
    q, k, v = leaves(random_qkv(spec, 1, 1, length, seed=length, dtype=WIDE))
    idx = reference.select(q.detach(), k.detach(), spec)
    assert gradcheck(frozen(spec, idx), (q, k, v), fast_mode=True, eps=1e-6, atol=1e-7)


@EACH_SPEC
def test_gradcheck_with_lists_that_have_holes_and_duplicates(spec: Spec) -> None:
    q, k, v = leaves(random_qkv(spec, 1, 1, 21, seed=4, dtype=WIDE))
    nodes = [node_count(21, spec.block, level) for level in range(1, spec.depth + 1)]
    idx = damaged(reference.select(q.detach(), k.detach(), spec), nodes, 5)
    if spec.enrichment == "none":  # log-sum-exps of queries without keys are -inf, which has no differences
        idx = tuple(entries.masked_fill(entries < 0, 0) for entries in idx)
    assert gradcheck(frozen(spec, idx), (q, k, v), fast_mode=True, eps=1e-6, atol=1e-7)


def whole(spec: Spec, qkv: list[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """A number from the results of pools, selection and attention together, and the lists."""
    o, lse, idx = reference.attention(qkv[0], qkv[1], qkv[2], spec)
    weights = torch.linspace(-1.0, 1.0, o.numel(), dtype=WIDE).view(o.shape)
    return (o * weights).sum() + lse.sin().sum(), idx


@EACH_SPEC
@pytest.mark.parametrize("length", [3, 37, 66])
def test_differences_of_the_whole_thing_away_from_ties(spec: Spec, length: int) -> None:
    """The selection is constant around a point without ties, so its part in the gradient is zero."""
    generator = torch.Generator().manual_seed(length)
    given = leaves(clustered_qkv(spec, 1, 2, length, seed=length, dtype=WIDE))
    total, idx = whole(spec, list(given))
    gradients = torch.autograd.grad(total, given)
    direction = [torch.randn(x.shape, generator=generator, dtype=WIDE) for x in given]
    step = 1e-6
    ends = []
    for sign in (-1.0, 1.0):
        with torch.no_grad():
            end, moved = whole(spec, [x + sign * step * d for x, d in zip(given, direction, strict=True)])
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(moved, idx, strict=True)), "a tie"
        ends.append(float(end))
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
    assert (ends[1] - ends[0]) / (2 * step) == pytest.approx(slope, rel=1e-6, abs=1e-6)
