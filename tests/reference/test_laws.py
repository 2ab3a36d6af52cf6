# SPDX-License-Identifier: Apache-2.0
"""The laws of the mathematics, as properties of the vectorised reference in fp64."""

import math
from dataclasses import replace
from random import Random

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from llsa_gen.reference import attend, attention, dense_mask, node_count, select
from llsa_gen.reference.layout import check_tensors
from llsa_gen.spec import Spec
from llsa_gen.workloads import NONFINITE_CASES, adversarial_qkv, clustered_qkv, random_qkv
from tests.reference.test_oracles import assert_near
from tests.strategies import BLOCKS, Problem, budget, leaves, nonfinite_problems, problems, specs

EVERYTHING = 128


def dense(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Plain softmax attention over all tokens, with its normaliser."""
    logits = q @ k.mT / math.sqrt(q.shape[-1])
    return logits.softmax(-1) @ v, logits.logsumexp(-1)


def selecting_all(enrichment: str) -> st.SearchStrategy[Problem]:
    """Problems with at most 100 finest blocks and K beyond that."""
    chosen = specs(enrichments=(enrichment,)).map(lambda spec: replace(spec, topk=EVERYTHING))
    return problems(spec=chosen)


def test_overlap_with_everything_selected_is_not_dense() -> None:
    spec = Spec(levels=2, block=4, topk=EVERYTHING, head_dim=16)
    q, k, v = clustered_qkv(spec, 1, 1, 64, dtype=torch.float64)
    o, _, _ = attention(q, k, v, spec)
    assert float((o - dense(q, k, v)[0]).abs().max()) > 0.01


@given(selecting_all("none"))
@budget(30)
def test_none_with_everything_selected_is_dense(problem: Problem) -> None:
    q, k, v = problem.qkv()
    o, lse, _ = attention(q, k, v, problem.spec)
    assert_near(o, dense(q, k, v)[0])
    assert_near(lse, dense(q, k, v)[1])


@given(selecting_all("exclude_refined"))
@budget(30)
def test_exclude_refined_with_everything_selected_is_dense(problem: Problem) -> None:
    q, k, v = problem.qkv()
    o, lse, _ = attention(q, k, v, problem.spec)
    assert_near(o, dense(q, k, v)[0])
    assert_near(lse, dense(q, k, v)[1])


@given(problems(spec=specs(enrichments=("exclude_refined",), weights=("c",))))
@budget(50)
def test_exclude_refined_is_dense_when_coarsest_nodes_are_constant(problem: Problem) -> None:
    q, k, v = problem.qkv()
    width = problem.spec.block**problem.spec.depth
    leaders = torch.arange(problem.length) // width * width
    k, v = k[:, :, leaders], v[:, :, leaders]
    o, lse, _ = attention(q, k, v, problem.spec)
    assert_near(o, dense(q, k, v)[0])
    assert_near(lse, dense(q, k, v)[1])


@given(problems(spec=specs(enrichments=("exclude_refined",), weights=("c",)), max_batch=1))
@budget(30)
def test_exclude_refined_represents_every_token_once(problem: Problem) -> None:
    represented = _tokens_represented(problem)
    assert torch.equal(represented, torch.full_like(represented, problem.length))


@given(problems(), st.floats(-3.0, 3.0))
@budget(50)
def test_constant_values_are_preserved(problem: Problem, constant: float) -> None:
    q, k, v = problem.qkv()
    o, _, _ = attention(q, k, torch.full_like(v, constant), problem.spec)
    assert_near(o, torch.full_like(o, constant))


@given(problems(max_batch=3, max_heads=3), st.randoms(use_true_random=False))
@budget(30)
def test_heads_and_batch_permute(problem: Problem, random: Random) -> None:
    q, k, v = problem.qkv()
    batch = torch.tensor(random.sample(range(problem.batch), problem.batch))[:, None]
    heads = torch.tensor(random.sample(range(problem.heads), problem.heads))[None, :]
    o, lse, idx = attention(q, k, v, problem.spec)
    o_moved, lse_moved, idx_moved = attention(q[batch, heads], k[batch, heads], v[batch, heads], problem.spec)
    assert_near(o_moved, o[batch, heads])
    assert_near(lse_moved, lse[batch, heads])
    for entries, moved in zip(idx, idx_moved, strict=True):
        assert torch.equal(moved, entries[batch, heads])


@given(problems())
@budget(50)
def test_shifting_every_key_shifts_only_the_normaliser(problem: Problem) -> None:
    q, k, v = problem.qkv()
    idx = select(q, k, problem.spec)
    shift = torch.linspace(-1.0, 1.0, q.shape[-1], dtype=q.dtype)
    o, lse = attend(q, k, v, idx, problem.spec)
    o_moved, lse_moved = attend(q, k + shift, v, idx, problem.spec)
    assert_near(o_moved, o)
    assert_near(lse_moved, lse + q @ shift / math.sqrt(q.shape[-1]))


@given(problems(), st.floats(-8.0, 8.0))
@budget(30)
def test_scaling_values_scales_the_output(problem: Problem, factor: float) -> None:
    q, k, v = problem.qkv()
    o, lse, idx = attention(q, k, v, problem.spec)
    o_scaled, lse_scaled, idx_scaled = attention(q, k, factor * v, problem.spec)
    assert_near(o_scaled, factor * o)
    assert torch.equal(lse_scaled, lse)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(idx, idx_scaled, strict=True))


@given(problems(spec=specs(max_topk=6), low=2, max_batch=1, max_heads=1), st.data())
@budget(50)
def test_tokens_of_unselected_blocks_act_only_through_pools(problem: Problem, data: st.DataObject) -> None:
    q, k, v = problem.qkv()
    idx = select(q, k, problem.spec)
    block = problem.spec.block
    changed = data.draw(st.integers(0, node_count(problem.length, block, 1) - 1))
    width = min(block, problem.length - changed * block)
    noise = torch.linspace(-5.0, 5.0, width, dtype=k.dtype)  # sums to zero: no pool of any level moves
    k_moved, v_moved = k.clone(), v.clone()
    k_moved[:, :, changed * block : changed * block + width] += noise[:, None] if width > 1 else 0.0
    v_moved[:, :, changed * block : changed * block + width] -= noise[:, None] if width > 1 else 0.0
    o, lse = attend(q, k, v, idx, problem.spec)
    o_moved, lse_moved = attend(q, k_moved, v_moved, idx, problem.spec)
    rows = (idx[0] == changed).any(-1)[0, 0]
    untouched = ~rows[torch.arange(problem.length) // block]
    assert_near(o_moved[:, :, untouched], o[:, :, untouched], 1e-10)
    assert_near(lse_moved[:, :, untouched], lse[:, :, untouched], 1e-10)
    if width > 1 and bool(rows.any()):
        assert not torch.allclose(o_moved[:, :, ~untouched], o[:, :, ~untouched])


@given(problems(spec=specs(max_topk=1), max_batch=1), st.integers(1, 31))
@budget(50)
def test_more_k_never_attends_fewer_tokens(problem: Problem, topk: int) -> None:
    fewer, more = (_keys_attended(problem.with_spec(topk=count)) for count in (topk, topk + 1))
    for before, after in zip(fewer, more, strict=True):
        assert bool((after >= before).all())


@given(problems(spec=specs(max_topk=31), max_batch=1))
@budget(30)
def test_more_k_at_the_finest_level_never_attends_fewer_tokens(problem: Problem) -> None:
    finest, *coarser = problem.spec.topks
    fewer = _keys_attended(problem)
    more = _keys_attended(problem.with_spec(topk=(finest + 1, *coarser)))
    for before, after in zip(fewer, more, strict=True):
        assert bool((after >= before).all())


def test_more_k_at_one_coarse_level_may_attend_fewer_tokens() -> None:
    # With K_3 = 1 the queries 0..15 see the children of node 0 of level 3, a complete tree. With K_3 = 2 they also see
    # the ragged node 1, like its only child better, and are left with the one token below it.
    q, k = torch.zeros(2, 1, 1, 65, 16, dtype=torch.float64)
    q[:, :, :16, 1] = q[:, :, 16:, 0] = 1.0
    k[:, :, :64, 0] = k[:, :, 64:, 1] = 1.0
    blocks = [select(q, k, Spec(levels=3, block=4, topk=(3, 1, top), head_dim=16))[0][0, 0, 0] for top in (1, 2)]
    assert [entries.tolist() for entries in blocks] == [[0, 1, 2], [16, -1, -1]]


@given(specs(enrichments=("overlap",)), st.integers(1, 400), st.sampled_from(("constant", "negative_zero")))
@budget(50)
def test_ties_go_to_the_lowest_id(spec: Spec, length: int, case: str) -> None:
    q, k, _ = adversarial_qkv(case, spec, 1, 1, length, dtype=torch.float64)
    for dtype in (torch.float64, torch.float32):
        available = node_count(length, spec.block, spec.depth)
        for level in range(spec.depth, 0, -1):
            entries = select(q, k, spec, compute_dtype=dtype)[level - 1]
            taken = min(available, spec.topks[level - 1])
            expected = torch.full(entries.shape[-1:], -1, dtype=torch.int32)
            expected[:taken] = torch.arange(taken)
            assert torch.equal(entries, expected.expand_as(entries))
            available = min(taken * spec.block, node_count(length, spec.block, level - 1))


@given(nonfinite_problems(max_batch=2, max_heads=2))
@budget(65)
def test_heads_and_batch_entries_are_isolated(problem: Problem) -> None:
    clean = replace(problem, inputs="random").qkv()
    expected = attention(*clean, problem.spec)
    o, lse, idx = attention(*problem.qkv(), problem.spec)
    other = torch.ones(problem.batch, problem.heads, dtype=torch.bool)
    other[0, 0] = False
    assert torch.equal(o[other], expected[0][other])
    assert torch.equal(lse[other], expected[1][other])
    for level, (mine, theirs) in enumerate(zip(idx, expected[2], strict=True), start=1):
        assert torch.equal(mine[other], theirs[other])
        assert int(mine.max()) < node_count(problem.length, problem.spec.block, level)
        # Missing entries only depend on which parents exist, never on a score.
        ordered = mine.sort(-1).values
        assert not bool(((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)).any())


@pytest.mark.parametrize("case", NONFINITE_CASES)
def test_nan_ranks_last_but_before_missing(case: str) -> None:
    spec = Spec(levels=1, block=4, topk=8, head_dim=16)
    q, k, _ = adversarial_qkv(case, spec, 1, 1, 20, dtype=torch.float64)
    idx = select(q, k, spec)[0][0, 0]
    assert idx[:, 5:].eq(-1).all()
    assert torch.equal(idx[:, :5].sort(-1).values, torch.arange(5).expand(5, 5).int())
    if case == "nan_key":
        assert idx[:, 4].eq(2).all()
    if case == "nan_query":
        assert torch.equal(idx[2, :5], torch.arange(5).int())


@pytest.mark.parametrize("enrichment", ["overlap", "exclude_refined", "none"])
@pytest.mark.parametrize("levels", [1, 2, 4, 6])
def test_one_token(levels: int, enrichment: str) -> None:
    spec = Spec(levels=levels, block=16, topk=8, head_dim=16, enrichment=enrichment)
    q, k, v = random_qkv(spec, 2, 1, 1, dtype=torch.float64)
    o, lse, idx = attention(q, k, v, spec)
    times = levels + 1 if enrichment == "overlap" else 1
    assert_near(o, v)
    assert_near(lse, (q * k).sum(-1) / 4.0 + math.log(times))
    assert all(entries[..., 0].eq(0).all() and entries[..., 1:].eq(-1).all() for entries in idx)


@pytest.mark.parametrize("levels", [1, 3, 6])
@pytest.mark.parametrize("sizes", [(1, 1, 0), (0, 2, 5), (2, 0, 5)])
def test_nothing_at_all(levels: int, sizes: tuple[int, int, int]) -> None:
    spec = Spec(levels=levels, block=4, topk=3, head_dim=16, value_dim=24)
    o, lse, idx = attention(*leaves(random_qkv(spec, *sizes, dtype=torch.float64)), spec)
    assert o.shape == (*sizes, 24)
    assert lse.shape == sizes
    for level, entries in enumerate(idx, start=1):
        assert entries.shape == (*sizes[:2], node_count(sizes[2], 4, level), 3)


@given(problems(spec=specs(max_levels=4, blocks=BLOCKS[:2]), high=9))
@example(Problem(Spec(levels=6, block=128, topk=128, head_dim=16), 1, 1, 3, "random", 0))
@budget(30)
def test_deep_levels_on_short_sequences(problem: Problem) -> None:
    q, k, v = problem.qkv()
    o, lse, idx = attention(q, k, v, problem.spec)
    o_dense, lse_dense = dense_mask.attend(q, k, v, idx, problem.spec)
    assert_near(o, o_dense)
    assert_near(lse, lse_dense)
    assert idx[-1].shape[2] == node_count(problem.length, problem.spec.block, problem.spec.depth)


def _keys_attended(problem: Problem) -> tuple[Tensor, Tensor]:
    """Tokens in selected blocks, and keys of all levels, that each query attends."""
    q, k, _ = problem.qkv()
    times = dense_mask.multiplicity(select(q, k, problem.spec), check_tensors(q, k), problem.spec)
    return times[0].sum(-1), sum((level.sum(-1) for level in times), torch.zeros(()))


def _tokens_represented(problem: Problem) -> Tensor:
    """Tokens that stand behind the attended keys of each query, each counted as often as it is represented."""
    q, k, _ = problem.qkv()
    shape = check_tensors(q, k)
    times = dense_mask.multiplicity(select(q, k, problem.spec), shape, problem.spec)
    total = torch.zeros_like(times[0])
    for level, found in enumerate(times):
        total = total + found[..., torch.arange(shape.keys) // problem.spec.block**level]
    assert bool((total == 1).all())
    return total.sum(-1)
