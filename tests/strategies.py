# SPDX-License-Identifier: Apache-2.0
"""Hypothesis strategies that all tests share: specs, lengths, whole problems, adversarial tensors, given lists."""

from dataclasses import dataclass, replace

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

from llsa_gen.reference import node_count, select
from llsa_gen.spec import Spec
from llsa_gen.workloads import FINITE_CASES, NONFINITE_CASES, Qkv, adversarial_qkv, clustered_qkv, random_qkv

ENRICHMENTS = ("overlap", "exclude_refined", "none")
WEIGHTS = ("c", "1", "b**l", "c / (1 + l)")
BLOCKS = (4, 8, 16, 32, 64)
STRUCTURES = ("random", "clustered")


def budget(examples: int) -> settings:
    """Return the settings of a property: how many examples it may cost, of 100 that the profile allows by default."""
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    scaled = max(1, examples * settings().max_examples // 100)
    return settings(max_examples=scaled, deadline=None, suppress_health_check=checks)


@dataclass(frozen=True)
class Problem:
    """A spec, sizes and the recipe of the inputs; small enough to read when a property fails."""

    spec: Spec
    batch: int
    heads: int
    length: int
    inputs: str
    seed: int

    def qkv(self, dtype: torch.dtype | None = torch.float64) -> Qkv:
        """Return the tensors; the spec's dtype for None."""
        sizes = (self.spec, self.batch, self.heads, self.length)
        if self.inputs == "random":
            return random_qkv(*sizes, seed=self.seed, dtype=dtype)
        if self.inputs == "clustered":
            return clustered_qkv(*sizes, seed=self.seed, dtype=dtype)
        return adversarial_qkv(self.inputs, *sizes, seed=self.seed, dtype=dtype)

    def with_spec(self, **changes: object) -> "Problem":
        """Return the same problem with fields of the spec changed."""
        return replace(self, spec=replace(self.spec, **changes))  # type: ignore[arg-type]


@st.composite
def specs(
    draw: st.DrawFn,
    *,
    max_levels: int = 4,
    blocks: tuple[int, ...] = BLOCKS,
    max_topk: int = 32,
    enrichments: tuple[str, ...] = ENRICHMENTS,
    weights: tuple[str, ...] = WEIGHTS,
    head_dims: tuple[int, ...] = (16, 40),
    value_dims: tuple[int, ...] = (16, 24),
    dtypes: tuple[str, ...] = ("fp32", "fp16", "bf16"),
) -> Spec:
    """Specs with one K or one per level, powers of two or not."""
    levels = draw(st.integers(1, max_levels))
    one = st.integers(1, max_topk)
    topk = draw(st.one_of(one, st.tuples(*[one] * levels)))
    return Spec(
        levels=levels,
        block=draw(st.sampled_from(blocks)),
        topk=topk,
        head_dim=draw(st.sampled_from(head_dims)),
        value_dim=draw(st.sampled_from(value_dims)),
        dtype=draw(st.sampled_from(dtypes)),
        enrichment=draw(st.sampled_from(enrichments)),
        weight=draw(st.sampled_from(weights)),
    )


@st.composite
def lengths(draw: st.DrawFn, block: int, *, low: int = 1, high: int = 400) -> int:
    """Lengths in `low..high`: anything, and the neighbours of whole numbers of blocks."""
    multiples = st.integers(0, high // block).flatmap(
        lambda m: st.sampled_from([m * block - 1, m * block, m * block + 1])
    )
    length = draw(st.one_of(st.integers(low, high), multiples))
    return min(max(length, low), high)


@st.composite
def problems(
    draw: st.DrawFn,
    *,
    spec: st.SearchStrategy[Spec] | None = None,
    low: int = 1,
    high: int = 400,
    inputs: tuple[str, ...] = STRUCTURES,
    max_batch: int = 2,
    max_heads: int = 2,
) -> Problem:
    """Whole problems; `inputs` names the recipes to draw from."""
    chosen = draw(specs() if spec is None else spec)
    return Problem(
        spec=chosen,
        batch=draw(st.integers(1, max_batch)),
        heads=draw(st.integers(1, max_heads)),
        length=draw(lengths(chosen.block, low=low, high=high)),
        inputs=draw(st.sampled_from(inputs)),
        seed=draw(st.integers(0, 2**16)),
    )


def finite_problems(**limits: object) -> st.SearchStrategy[Problem]:
    """Problems whose inputs are finite but may be unpleasant. Limits as `problems`."""
    return problems(inputs=STRUCTURES + FINITE_CASES, **limits)  # type: ignore[arg-type]


def nonfinite_problems(**limits: object) -> st.SearchStrategy[Problem]:
    """Problems with one NaN or inf in head 0 of batch entry 0. Limits as `problems`."""
    return problems(inputs=NONFINITE_CASES, **limits)  # type: ignore[arg-type]


def leaves(qkv: Qkv) -> Qkv:
    """Make fresh leaves that require a gradient."""
    q, k, v = (x.detach().clone().requires_grad_() for x in qkv)
    return q, k, v


def damaged(idx: tuple[Tensor, ...], nodes: list[int], seed: int) -> tuple[Tensor, ...]:
    """Return lists that a user may give: some entries missing in the middle, some doubled, some of any other node."""
    generator = torch.Generator().manual_seed(seed)
    result = []
    for entries, count in zip(idx, nodes, strict=True):
        kind = torch.randint(0, 8, entries.shape, generator=generator)
        other = torch.randint(0, max(count, 1), entries.shape, generator=generator).int()
        changed = torch.where(kind == 0, -1, torch.where(kind == 1, entries.roll(1, -1), entries))
        result.append(torch.where((kind == 2) & (count > 0), other, changed).int())
    return tuple(result)


@st.composite
def given_lists(draw: st.DrawFn, problem: Problem) -> tuple[Tensor, ...]:
    """Draw the selection of a problem, or a damaged one."""
    q, k, _ = problem.qkv()
    idx = select(q, k, problem.spec)
    if draw(st.booleans()):
        return idx
    nodes = [node_count(problem.length, problem.spec.block, level) for level in range(1, problem.spec.depth + 1)]
    return damaged(idx, nodes, draw(st.integers(0, 2**16)))
