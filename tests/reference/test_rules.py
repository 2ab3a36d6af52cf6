# SPDX-License-Identifier: Apache-2.0
"""The two rules by which results are judged accept what is right and refuse what is wrong."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from torch import Tensor

from llsa_gen.reference import (
    assert_close_by_rule,
    assert_same_selection,
    attend,
    attention,
    native,
    pool,
    rounding_magnitude,
    select,
    select_from_pools,
)
from llsa_gen.spec import Spec
from llsa_gen.workloads import clustered_qkv, random_qkv
from tests.strategies import Problem, budget, finite_problems, nonfinite_problems, problems, specs

SPEC = Spec(levels=2, block=4, topk=3, head_dim=16, dtype="fp32")
Lists = tuple[Tensor, ...]


@given(finite_problems(high=200))
@budget(65)
def test_fp32_arithmetic_follows_the_rule(problem: Problem) -> None:
    q, k, v = problem.qkv(None)
    exact, exact_lse, idx = attention(q, k, v, problem.spec)
    plain, plain_lse = native(q, k, v, idx, problem.spec)
    o, lse = attend(q, k, v, idx, problem.spec, compute_dtype=torch.float32)
    size, size_lse = rounding_magnitude(q, k, v, idx, problem.spec)
    assert_close_by_rule(o.to(q.dtype), exact, plain, magnitude=size, label="o")
    assert_close_by_rule(lse, exact_lse, plain_lse, magnitude=size_lse, label="lse")


@given(problems(spec=specs(dtypes=("fp32",)), low=20, high=150))
@budget(30)
def test_the_floor_hides_no_wrong_weight(problem: Problem) -> None:
    q, k, v = problem.qkv(None)
    exact, exact_lse, idx = attention(q, k, v, problem.spec)
    plain, plain_lse = native(q, k, v, idx, problem.spec)
    size, size_lse = rounding_magnitude(q, k, v, idx, problem.spec)
    with pytest.raises(AssertionError, match="distance"):
        assert_close_by_rule(exact.float() * 1.001, exact, plain, magnitude=size)
    with pytest.raises(AssertionError, match="distance"):
        assert_close_by_rule(exact_lse.float() + 0.001, exact_lse, plain_lse, magnitude=size_lse)


def test_one_wrong_element_and_a_drift_are_both_found() -> None:
    exact = torch.linspace(-1.0, 1.0, 10_000, dtype=torch.float64)
    noise = torch.zeros_like(exact)
    noise[0] = 1e-3
    assert_close_by_rule(exact.float(), exact, exact + noise)
    with pytest.raises(AssertionError, match="max distance"):
        assert_close_by_rule(exact + 3.0 * noise, exact, exact + noise)
    with pytest.raises(AssertionError, match="Frobenius distance"):
        assert_close_by_rule(exact + 1e-3, exact, exact + noise)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nonfinite_places_must_match(value: float) -> None:
    exact = torch.ones(6, dtype=torch.float64)
    exact[2] = value
    assert_close_by_rule(exact.float(), exact, exact)
    for wrong in (torch.ones(6), torch.full((6,), value), exact.float().roll(1), -torch.where(exact == 1, -1.0, value)):
        if torch.equal(wrong.isnan(), exact.isnan()) and torch.equal(wrong.nan_to_num(), exact.float().nan_to_num()):
            continue
        with pytest.raises(AssertionError, match="places"):
            assert_close_by_rule(wrong, exact, exact)


def test_overflow_of_the_format_is_infinity() -> None:
    exact = torch.tensor([1.0e5, 1.0], dtype=torch.float64)
    assert_close_by_rule(torch.tensor([torch.inf, 1.0], dtype=torch.float16), exact, exact)


def test_a_native_failure_grants_nothing() -> None:
    exact = torch.ones(3, dtype=torch.float64)
    for failed in (torch.inf, -torch.inf, torch.nan):
        with pytest.raises(AssertionError, match="distance"):
            assert_close_by_rule(exact.float() + 1e-3, exact, torch.tensor([failed, 1.0, 1.0]))


def test_shapes_must_agree() -> None:
    with pytest.raises(AssertionError, match="shapes"):
        assert_close_by_rule(torch.ones(3), torch.ones(1), torch.ones(3))


@given(finite_problems(high=300))
@budget(65)
def test_selections_in_fp64_and_fp32_are_both_right(problem: Problem) -> None:
    for dtype in (torch.float64, None):
        q, k, _ = problem.qkv(dtype)
        for compute in (torch.float64, torch.float32):
            idx = select(q, k, problem.spec, compute_dtype=compute)
            assert_same_selection(idx, q, k, problem.spec)
            pools = (pool(q, problem.spec), pool(k, problem.spec))
            assert_same_selection(idx, q, k, problem.spec, pools=pools)


@given(nonfinite_problems(high=200))
@budget(40)
def test_selections_of_nonfinite_inputs_are_right(problem: Problem) -> None:
    q, k, _ = problem.qkv(torch.float32)
    assert_same_selection(select(q, k, problem.spec), q, k, problem.spec)


@given(finite_problems(high=300))
@budget(40)
def test_another_order_of_summing_pools_is_forgiven(problem: Problem) -> None:
    q, k, _ = problem.qkv(None)
    mirrored = []
    for x in (q, k):
        wide = pool(x.double(), problem.spec)
        mirrored.append(tuple(level.float().to(x.dtype) for level in wide))
    q_pools, k_pools = mirrored
    assert_same_selection(select_from_pools(q_pools, k_pools, problem.spec), q, k, problem.spec)


def _set(level: int, row: int, entry: int, value: int) -> Callable[[Lists], Lists]:
    def change(idx: Lists) -> Lists:
        changed = tuple(entries.clone() for entries in idx)
        changed[level - 1][0, 0, row, entry] = value
        return changed

    return change


def _worst_children(idx: Lists) -> Lists:
    """Level 1 takes children of the right parents that score worst instead of best."""
    q, k, _ = clustered_qkv(SPEC, 1, 1, 96)
    fine = select(q, -k, Spec(levels=1, block=4, topk=24, head_dim=16, dtype="fp32"))[0]
    allowed = (fine[..., None] // 4 == idx[1][:, :, torch.arange(24) // 4][..., None, :]).any(-1)
    order = (~allowed).int().sort(dim=-1, stable=True).indices[..., :3]
    return fine.gather(-1, order), idx[1]


BREAKAGES: dict[str, tuple[Callable[[Lists], Lists], str]] = {
    "id too large": (_set(1, 0, 0, 24), "does not exist"),
    "id below -1": (_set(2, 0, 0, -2), "does not exist"),
    "entry missing": (_set(1, 3, 2, -1), "wrong number"),
    "hole in front": (lambda idx: (idx[0], torch.where(idx[1] == idx[1][..., :1], -1, idx[1])), "wrong number"),
    "wrong parents": (lambda idx: (idx[0].roll(4, 2), idx[1]), "child"),
    "parents of the wrong row": (lambda idx: (idx[0], idx[1].roll(1, 2)), "child|scores"),
    "worst children": (_worst_children, "scores"),
    "wrong type": (lambda idx: (idx[0].long(), idx[1]), "dtype"),
    "wrong width": (lambda idx: (idx[0][..., :2], idx[1]), "shape"),
    "a level short": (lambda idx: idx[:1], "lists for"),
}


@pytest.mark.parametrize("name", BREAKAGES)
def test_wrong_selections_are_found(name: str) -> None:
    q, k, _ = clustered_qkv(SPEC, 1, 1, 96)
    idx = select(q, k, SPEC)
    assert_same_selection(idx, q, k, SPEC)
    breakage, message = BREAKAGES[name]
    with pytest.raises(AssertionError, match=message):
        assert_same_selection(breakage(idx), q, k, SPEC)


def test_repeated_entries_and_holes_are_found() -> None:
    q, k, _ = clustered_qkv(SPEC, 1, 1, 96)
    fine, coarse = select(q, k, SPEC)
    repeated = fine.clone()
    repeated[..., 1] = repeated[..., 0]
    with pytest.raises(AssertionError, match="twice"):
        assert_same_selection((repeated, coarse), q, k, SPEC)
    short_q, short_k, _ = random_qkv(SPEC, 1, 1, 6)
    fine, coarse = select(short_q, short_k, SPEC)
    with pytest.raises(AssertionError, match="before an entry"):
        assert_same_selection((fine.roll(1, -1), coarse), short_q, short_k, SPEC)


def test_the_order_of_entries_is_free() -> None:
    q, k, _ = clustered_qkv(SPEC, 1, 1, 96)
    fine, coarse = select(q, k, SPEC)
    assert_same_selection((fine.flip(-1), coarse.flip(-1)), q, k, SPEC)


@pytest.mark.parametrize(("gap", "forgiven"), [(2.0**-22, True), (2.0**-12, False)])
def test_only_gaps_within_rounding_are_forgiven(gap: float, forgiven: bool) -> None:
    spec = Spec(levels=1, block=4, topk=1, head_dim=16, dtype="fp32")
    q, k = torch.ones(2, 1, 1, 8, 16)
    k[:, :, 4:] += gap
    second_best = (torch.zeros(1, 1, 2, 1, dtype=torch.int32),)
    if forgiven:
        assert_same_selection(second_best, q, k, spec)
    else:
        with pytest.raises(AssertionError, match="scores"):
            assert_same_selection(second_best, q, k, spec)
