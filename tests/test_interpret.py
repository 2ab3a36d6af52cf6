# SPDX-License-Identifier: Apache-2.0
"""The meaning of plans: kept by every lowering pass, and equal to the reference's, which was written separately."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llsa_gen import reference
from llsa_gen.errors import InputError, UnsupportedError
from llsa_gen.ir import sizes
from llsa_gen.ir.interpret import interpret
from llsa_gen.ir.meanings import MEANINGS
from llsa_gen.lowering import lower, trace
from llsa_gen.spec import ENRICHMENTS, Spec
from llsa_gen.stages import STAGE_KINDS
from tests.strategies import budget

SPECS = st.builds(
    Spec,
    levels=st.integers(1, 6),
    block=st.sampled_from([4, 8, 16]),
    topk=st.sampled_from([1, 2, 3, 5, 40, "1 + l", "7 - l"]),
    head_dim=st.just(16),
    value_dim=st.sampled_from([16, 24]),
    enrichment=st.sampled_from(ENRICHMENTS),
    weight=st.sampled_from(["c", "1", "b**l / (l + 1)"]),
    dtype=st.just("fp32"),
)
LENGTHS = st.integers(1, 40) | st.integers(41, 330)
SEEDS = st.integers(0, 10**6)


def inputs(spec: Spec, length: int, seed: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """q, k, v with small fractions of two: their sums are exact in any order, in fp32 too, and ties are common."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(1, 2, length, spec.head_dim), (1, 2, length, spec.head_dim), (1, 2, length, spec.dim_v)]
    return [torch.randint(-12, 13, shape, generator=generator).to(dtype) / 8 for shape in shapes]


def lists_of(result: dict[str, Tensor], spec: Spec) -> list[Tensor]:
    return [result[f"idx{level}"] for level in range(1, spec.depth + 1)]


# -- laws -----------------------------------------------------------------------------------------


@budget(25)
@given(SPECS, LENGTHS, SEEDS)
def test_every_pass_keeps_the_meaning(spec: Spec, length: int, seed: int) -> None:
    q, k, v = inputs(spec, length, seed)
    steps = [
        interpret(plan, q, k, v, compute_dtype=torch.float64)
        for plan in (*(plan for _, plan in trace(spec)), lower(spec, joined=True))
    ]
    for result in steps[1:]:
        for name in ("o", "lse", *(f"idx{level}" for level in range(1, spec.depth + 1))):
            torch.testing.assert_close(result[name], steps[0][name], rtol=1e-13, atol=1e-13)


@budget(25)
@given(SPECS, LENGTHS, SEEDS)
def test_attention_equals_the_reference_given_the_same_lists(spec: Spec, length: int, seed: int) -> None:
    q, k, v = inputs(spec, length, seed)
    result = interpret(lower(spec), q, k, v, compute_dtype=torch.float64)
    o, lse = reference.attend(q, k, v, lists_of(result, spec), spec)
    torch.testing.assert_close(result["o"], o, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(result["lse"], lse, rtol=1e-12, atol=1e-12)


@budget(15)
@given(SPECS, LENGTHS, SEEDS, st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_selection_reaches_the_scores_of_the_reference(spec: Spec, length: int, seed: int, dtype: torch.dtype) -> None:
    q, k, v = inputs(spec, length, seed, dtype)
    result = interpret(lower(spec), q, k, v, compute_dtype=torch.float64)
    reference.assert_same_selection(lists_of(result, spec), q, k, spec)


@budget(15)
@given(SPECS, LENGTHS, SEEDS, st.sampled_from([torch.float64, torch.bfloat16]))
def test_pools_equal_those_of_the_reference(spec: Spec, length: int, seed: int, dtype: torch.dtype) -> None:
    q, k, v = inputs(spec, length, seed, dtype)
    result = interpret(lower(spec), q, k, v)
    for name, tokens in (("q_pools", q), ("k_pools", k)):
        expected = torch.cat(reference.pool(tokens, spec), dim=2)
        assert result[name].dtype == dtype
        torch.testing.assert_close(result[name], expected, rtol=0, atol=0)


@budget(25)
@given(SPECS, LENGTHS, SEEDS, st.floats(0.01, 30.0))
def test_given_lists_are_used_and_nothing_is_selected(spec: Spec, length: int, seed: int, scale: float) -> None:
    q, k, v = inputs(spec, length, seed)
    other = interpret(lower(spec), k, q, v, compute_dtype=torch.float64)
    given_lists = {f"idx{level}": other[f"idx{level}"] for level in range(1, spec.depth + 1)}
    result = interpret(lower(spec), q, k, v, scale, compute_dtype=torch.float64, given=given_lists)
    assert all(torch.equal(result[name], lists) for name, lists in given_lists.items())
    o, lse = reference.attend(q, k, v, list(given_lists.values()), spec, scale=scale)
    torch.testing.assert_close(result["o"], o, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(result["lse"], lse, rtol=1e-11, atol=1e-11)


@budget(25)
@given(SPECS, LENGTHS, SEEDS)
def test_gradients_equal_those_of_the_reference_after_every_pass(spec: Spec, length: int, seed: int) -> None:
    q, k, v = (x.requires_grad_() for x in inputs(spec, length, seed))
    forward = interpret(lower(spec), q.detach(), k.detach(), v.detach(), compute_dtype=torch.float64)
    o, lse = reference.attend(q, k, v, lists_of(forward, spec), spec)
    _, o_grad, upward = inputs(replace(spec, head_dim=spec.dim_v), length, seed + 1)
    lse_grad = upward[..., 0]
    expected = torch.autograd.grad([o, lse], [q, k, v], [o_grad, lse_grad])
    results = {"o": o.detach(), "lse": lse.detach(), "o_grad": o_grad, "lse_grad": lse_grad}
    mixed = lower(spec, "backward", (spec.depth,))  # short lists at the top alone
    joined = lower(spec, "backward", joined=True)
    for plan in (*(plan for _, plan in trace(spec, "backward")), mixed, joined):
        found = interpret(plan, q.detach(), k.detach(), v.detach(), compute_dtype=torch.float64, results=results)
        for name, gradient in zip(plan.outputs, expected, strict=True):
            torch.testing.assert_close(found[name], gradient, rtol=1e-11, atol=1e-11)


@budget(10)
@given(SPECS, LENGTHS, SEEDS)
def test_gradients_do_not_depend_on_how_lists_are_cut(spec: Spec, length: int, seed: int) -> None:
    q, k, v = inputs(spec, length, seed)
    k = torch.zeros_like(k)  # every row of a level selects the same nodes
    o_grad = v.flip(2)
    forward = interpret(lower(spec), q, k, v, compute_dtype=torch.float64)
    results = {"o": forward["o"], "lse": forward["lse"], "o_grad": o_grad, "lse_grad": o_grad[..., 0]}
    whole = interpret(trace(spec, "backward")[0][1], q, k, v, compute_dtype=torch.float64, results=results)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sizes, "PART_QUERIES", 1)
        cut = interpret(lower(spec, "backward"), q, k, v, compute_dtype=torch.float64, results=results)
    for name in ("q_grad", "k_grad", "v_grad"):
        torch.testing.assert_close(cut[name], whole[name], rtol=1e-11, atol=1e-11)


@budget(20)
@given(SPECS.filter(lambda spec: spec.levels == 2), LENGTHS, SEEDS, st.sampled_from([math.nan, math.inf]))
def test_what_is_not_finite_spreads_as_in_the_reference(spec: Spec, length: int, seed: int, bad: float) -> None:
    q, k, v = inputs(spec, length, seed)
    v[0, 1, seed % length, 0] = bad
    k[0, 1, seed % 7 % length, 3] = math.nan
    result = interpret(lower(spec), q, k, v, compute_dtype=torch.float64)
    o, lse = reference.attend(q, k, v, lists_of(result, spec), spec)
    torch.testing.assert_close(result["o"], o, rtol=1e-12, atol=1e-12, equal_nan=True)
    torch.testing.assert_close(result["lse"], lse, rtol=1e-12, atol=1e-12, equal_nan=True)
    assert result["o"][0, 0].isfinite().all()


# -- cases ----------------------------------------------------------------------------------------


def test_two_levels_by_hand() -> None:
    spec = Spec(levels=2, block=4, topk=1, head_dim=16, dtype="fp32")
    q, k, v = (torch.zeros(1, 1, 20, 16, dtype=torch.float64) for _ in range(3))
    q[..., 0] = 1.0
    k[0, 0, 17, 0] = 1.0
    v[0, 0, :, 0] = torch.arange(20.0)
    result = interpret(lower(spec), q, k, v, scale=4.0, compute_dtype=torch.float64)
    assert set(result["idx2"].flatten().tolist()) == {1}
    assert set(result["idx1"].flatten().tolist()) == {4}
    one, quarter = math.e**4, math.e
    # Level 2: nodes of 16 and 4 tokens; level 1: the one child of node 1, 4 tokens; tokens 16 to 19.
    total = 16 + 4 * quarter + 4 * quarter + (3 + one)
    first = 16 * 7.5 + 2 * 4 * quarter * 17.5 + (16 + 18 + 19 + 17 * one)
    assert result["lse"][0, 0, 0].item() == pytest.approx(math.log(total), rel=1e-14)
    assert result["o"][0, 0, 0, 0].item() == pytest.approx(first / total, rel=1e-14)


def test_ties_go_to_the_lowest_node_and_nan_ranks_last() -> None:
    spec = Spec(levels=1, block=4, topk=4, head_dim=16, dtype="fp32")
    q, k, v = (torch.ones(1, 1, 24, 16) for _ in range(3))
    k[:, :, 4:8] = math.nan
    k[:, :, 12:16] = 2.0
    assert interpret(lower(spec), q, k, v)["idx1"][0, 0, 0].tolist() == [3, 0, 2, 4]


def test_missing_entries_are_at_the_end() -> None:
    spec = Spec(levels=2, block=4, topk=(7, 3), head_dim=16, dtype="fp32")
    q, k, v = (torch.ones(1, 1, 30, 16) for _ in range(3))
    result = interpret(lower(spec), q, k, v)
    assert result["idx2"][0, 0, 0].tolist() == [0, 1, -1]
    assert result["idx1"][0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert result["idx1"].dtype == torch.int32


def test_a_query_without_keys_has_nothing() -> None:
    spec = Spec(levels=1, block=4, topk=2, head_dim=16, enrichment="none", dtype="fp32")
    q, k, v = (torch.ones(1, 1, 8, 16) for _ in range(3))
    result = interpret(lower(spec), q, k, v, given={"idx1": torch.full((1, 1, 2, 2), -1, dtype=torch.int32)})
    assert (result["o"] == 0).all()
    assert (result["lse"] == -math.inf).all()


def test_a_duplicate_counts_twice_and_lists_may_have_holes() -> None:
    spec = Spec(levels=1, block=4, topk=3, head_dim=16, enrichment="none", dtype="fp32")
    q, k, v = inputs(spec, 12, 3)
    given_lists = torch.tensor([[1, -1, 1], [2, 0, 2], [-1, -1, 0]], dtype=torch.int32).expand(1, 2, 3, 3)
    result = interpret(lower(spec), q, k, v, compute_dtype=torch.float64, given={"idx1": given_lists})
    logits = q[0, 0, 4] @ k[0, 0].T / 4.0
    weights = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64).repeat_interleave(4) * logits.exp()
    torch.testing.assert_close(result["o"][0, 0, 4], weights @ v[0, 0] / weights.sum())
    torch.testing.assert_close(result["lse"][0, 0, 4], weights.sum().log())


def test_query_and_key_lengths_are_kept_apart() -> None:
    spec = Spec(levels=2, block=4, topk=40, head_dim=16, enrichment="exclude_refined", dtype="fp32")
    q, k, v = inputs(spec, 70, 5)
    result = interpret(lower(spec), q[:, :, :33], k, v, compute_dtype=torch.float64)
    expected = torch.nn.functional.scaled_dot_product_attention(q[:, :, :33], k, v)
    torch.testing.assert_close(result["o"], expected, rtol=1e-12, atol=1e-12)


def test_every_kind_of_stage_has_a_meaning() -> None:
    assert set(MEANINGS) == set(STAGE_KINDS)


def test_what_does_not_fit_is_refused() -> None:
    spec = Spec(levels=1, block=4, head_dim=16, dtype="fp32")
    plan = lower(spec)
    q, k, v = inputs(spec, 9, 0)
    with pytest.raises(InputError, match="where:   v"):
        interpret(plan, q, k, v[..., :8])
    with pytest.raises(InputError, match="where:   q"):
        interpret(plan, q[0], k, v)
    with pytest.raises(InputError, match="without empty axes"):
        interpret(plan, q[:, :, :0], k, v)
    with pytest.raises(UnsupportedError, match="grouped heads"):
        interpret(plan, q, k[:, :1], v[:, :1])
    with pytest.raises(InputError, match="no such list"):
        interpret(plan, q, k, v, given={"idx2": torch.zeros(1)})
