# SPDX-License-Identifier: Apache-2.0
"""The three oracles agree: loops from the definition, vectorised torch, one dense softmax."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llsa_gen.errors import InputError, InputTypeError, UnsupportedError
from llsa_gen.reference import attend, attention, dense_mask, node_count, pool, scalar, select, vectorised
from llsa_gen.reference.layout import covered
from llsa_gen.spec import Spec
from llsa_gen.workloads import Qkv, clustered_qkv, random_qkv
from tests.strategies import Problem, budget, finite_problems, given_lists, leaves, nonfinite_problems, problems, specs

Attend = Callable[..., tuple[Tensor, Tensor]]
Attention = Callable[..., tuple[Tensor, Tensor, tuple[Tensor, ...]]]

SMALL = specs(blocks=(4, 8, 16, 32, 64), head_dims=(16,), value_dims=(16, 24))


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-11) -> None:
    """Equal up to fp64 rounding, relative to the largest entry; NaN and inf in the same places."""
    finite = expected.detach()[expected.isfinite()].abs()
    size = float(finite.max()) if finite.numel() else 1.0
    torch.testing.assert_close(actual, expected, rtol=0.0, atol=tolerance * max(size, 1.0), equal_nan=True)


def assert_loops_agree(problem: Problem) -> None:
    """The lists of both are the same, and their results are near."""
    q, k, v = problem.qkv()
    o, lse, idx = attention(q, k, v, problem.spec)
    o_loops, lse_loops, idx_loops = scalar.attention(q, k, v, problem.spec)
    for mine, theirs in zip(idx, idx_loops, strict=True):
        assert torch.equal(mine, theirs)
    assert_near(o, o_loops)
    assert_near(lse, lse_loops)


@given(problems(spec=SMALL, low=0, high=70, max_heads=1))
@budget(50)
def test_loops_and_tensors_agree(problem: Problem) -> None:
    assert_loops_agree(problem)


@given(st.data())
@budget(25)
def test_loops_and_tensors_agree_on_given_lists(data: st.DataObject) -> None:
    problem = data.draw(finite_problems(spec=SMALL, high=40, max_batch=1, max_heads=1))
    idx = data.draw(given_lists(problem))
    q, k, v = problem.qkv()
    o, lse = attend(q, k, v, idx, problem.spec, scale=0.3)
    o_loops, lse_loops, _ = scalar.attention(q, k, v, problem.spec, idx=idx, scale=0.3)
    assert_near(o, o_loops)
    assert_near(lse, lse_loops)


@given(nonfinite_problems(spec=SMALL, high=40, max_batch=1, max_heads=1))
@budget(40)
def test_loops_and_tensors_agree_on_nonfinite_inputs(problem: Problem) -> None:
    assert_loops_agree(problem)


def test_a_logit_of_plus_infinity_leaves_nan() -> None:
    spec = Spec(levels=1, block=4, topk=1, head_dim=16, enrichment="none")
    q, k, v = torch.ones(3, 1, 1, 4, 16, dtype=torch.float64)
    k[:, :, 0] = torch.inf
    for o, lse, _ in (attention(q, k, v, spec), scalar.attention(q, k, v, spec)):
        assert bool(o.isnan().all())
        assert bool(lse.isnan().all())


def test_missing_entries_read_nothing() -> None:
    spec = Spec(levels=2, block=4, topk=3, head_dim=16, enrichment="none")
    q, k, v = clustered_qkv(spec, 1, 1, 39, dtype=torch.float64)
    fine, coarse = select(q, k, spec)
    idx = (torch.where(fine % 3 == 0, -1, fine), coarse)  # blocks 0, 3, 6 and 9 (the ragged one) are never attended
    expected = attend(q, k, v, idx, spec)
    for block in (0, 3, 6, 9):
        k[:, :, 4 * block : 4 * block + 4] = v[:, :, 4 * block : 4 * block + 4] = torch.nan
    for mine, theirs in zip(attend(q, k, v, idx, spec), expected, strict=True):
        assert torch.equal(mine, theirs)


@given(st.data())
@budget(100)
def test_tensors_and_dense_mask_agree(data: st.DataObject) -> None:
    problem = data.draw(finite_problems(high=300))
    idx = data.draw(given_lists(problem))
    q, k, v = problem.qkv()
    o, lse = attend(q, k, v, idx, problem.spec)
    o_dense, lse_dense = dense_mask.attend(q, k, v, idx, problem.spec)
    assert_near(o, o_dense)
    assert_near(lse, lse_dense)


@given(problems(spec=SMALL, high=150), st.sampled_from((torch.float32, torch.float16, torch.bfloat16)))
@budget(40)
def test_low_precision_pools_are_rounded_once_and_shared(problem: Problem, dtype: torch.dtype) -> None:
    # On a grid of eighths every sum is exact, so that only the stored rounding is left to differ in.
    q, k, v = ((x.clamp(-4, 4) * 8).round() / 8 for x in problem.qkv(dtype))
    for level, stored in enumerate(pool(k, problem.spec), start=1):
        assert stored.dtype == dtype
        exact = pool(k.double(), problem.spec)[level - 1]
        assert bool(((stored.double() - exact).abs() <= exact.abs() * torch.finfo(dtype).eps * 0.5001).all())
    o, lse, idx = attention(q, k, v, problem.spec)
    o_dense, lse_dense = dense_mask.attend(q, k, v, idx, problem.spec)
    assert_near(o, o_dense)
    assert_near(lse, lse_dense)


@given(st.data())
@budget(40)
def test_gradients_agree_with_dense_mask(data: st.DataObject) -> None:
    problem = data.draw(problems(high=150))
    idx = data.draw(given_lists(problem))
    gradients = []
    oracles: tuple[Attend, ...] = (attend, dense_mask.attend)
    for oracle in oracles:
        inputs = leaves(problem.qkv())
        o, lse = oracle(*inputs, idx, problem.spec)
        seed = torch.Generator().manual_seed(problem.seed)
        towards = torch.randn(o.shape, generator=seed, dtype=o.dtype)
        total = (o * towards).sum() + lse.where(lse.isfinite(), 0.0).square().sum()
        gradients.append(torch.autograd.grad(total, inputs))
    for mine, theirs in zip(*gradients, strict=True):
        assert_near(mine, theirs, 1e-10)


@pytest.mark.parametrize("enrichment", ["overlap", "exclude_refined", "none"])
def test_gradcheck_with_frozen_lists(enrichment: str) -> None:
    spec = Spec(levels=2, block=4, topk=2, head_dim=16, enrichment=enrichment)
    q, k, v = (x[..., :2].contiguous().requires_grad_() for x in random_qkv(spec, 1, 1, 18, dtype=torch.float64))
    idx = select(q, k, spec)

    def frozen(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        return attend(inputs[0], inputs[1], inputs[2], idx, spec)

    assert torch.autograd.gradcheck(frozen, (q, k, v), atol=1e-6)


def test_gradient_of_rounded_pools_is_not_rounded() -> None:
    spec = Spec(levels=2, block=4, topk=1, head_dim=16, dtype="bf16")
    q, k, v = (x.double().requires_grad_() for x in random_qkv(spec, 1, 1, 40))
    o, _, idx = attention(q, k, v, spec, pool_dtype=torch.bfloat16)
    mine = torch.autograd.grad(o.square().sum(), (q, k, v))
    for tensor in mine:
        assert not torch.equal(tensor, tensor.bfloat16().double())
    plain, _ = attend(q, k, v, idx, spec)
    for rounded, smooth in zip(mine, torch.autograd.grad(plain.square().sum(), (q, k, v)), strict=True):
        assert 0.0 < float((rounded - smooth).norm()) < 0.05 * float(smooth.norm())


def test_selection_and_query_pools_carry_no_gradient() -> None:
    spec = Spec(levels=2, block=4, topk=2, head_dim=16)
    q, k, v = (x.requires_grad_() for x in random_qkv(spec, 1, 1, 33, dtype=torch.float64))
    o, _, idx = attention(q, k, v, spec)
    frozen, _ = attend(q, k, v, idx, spec)
    assert not any(entries.requires_grad for entries in idx)
    for mine, theirs in zip(
        torch.autograd.grad(o.sum(), (q, k, v)), torch.autograd.grad(frozen.sum(), (q, k, v)), strict=True
    ):
        assert torch.equal(mine, theirs)
    # The output of one query depends on no other query.
    (gradient,) = torch.autograd.grad(attend(q, k, v, idx, spec)[0][:, :, 5].sum(), q)
    assert int((gradient != 0).any(-1).sum()) == 1


@pytest.mark.parametrize("elements", [1, 5000])
def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    spec = Spec(levels=3, block=4, topk=(3, 2, 1), head_dim=16)
    inputs = leaves(clustered_qkv(spec, 2, 2, 101, dtype=torch.float64))

    def run() -> tuple[Tensor, ...]:
        o, lse, idx = attention(*inputs, spec)
        return (o, lse, *idx, *torch.autograd.grad(o.square().sum() + lse.sum(), inputs))

    whole = run()
    monkeypatch.setattr(vectorised, "CHUNK_ELEMENTS", elements)
    for mine, theirs in zip(run(), whole, strict=True):
        assert_near(mine.double(), theirs.double())


@pytest.mark.parametrize("change", ["value", "key"])
def test_empty_queries_give_zero_and_no_gradient(change: str) -> None:
    spec = Spec(levels=1, block=4, topk=2, head_dim=16, enrichment="none")
    q, k, v = random_qkv(spec, 1, 1, 8, dtype=torch.float64)
    (v if change == "value" else k)[:] = torch.nan
    idx = (torch.full((1, 1, 2, 2), -1, dtype=torch.int32),)
    for o, lse in (attend(q, k, v, idx, spec), scalar.attention(q, k, v, spec, idx=idx)[:2]):
        assert torch.equal(o, torch.zeros_like(o))
        assert torch.equal(lse, torch.full_like(lse, -torch.inf))
    inputs = leaves(random_qkv(spec, 1, 1, 8, dtype=torch.float64))
    for gradient in torch.autograd.grad(attend(*inputs, idx, spec)[0].sum(), inputs):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_pools_of_fp16_are_summed_wide() -> None:
    spec = Spec(levels=2, block=16, topk=1, head_dim=16, dtype="fp16")
    x = torch.full((1, 1, 300, 2), 6.0e4, dtype=torch.float16)
    for level in pool(x, spec):
        assert torch.equal(level, torch.full_like(level, 6.0e4))


def test_deep_levels_of_wide_blocks_cost_nothing() -> None:
    spec = Spec(levels=6, block=128, topk=1, head_dim=16)
    q, k, v = random_qkv(spec, 1, 1, 5, dtype=torch.float64)
    o, _, idx = attention(q, k, v, spec)
    assert [tuple(entries.shape) for entries in idx] == [(1, 1, 1, 1)] * 6
    assert_near(o, scalar.attention(q, k, v, spec)[0])


@given(specs(), st.integers(0, 5000))
@budget(85)
def test_node_counts_cover_every_token_once(spec: Spec, length: int) -> None:
    x = torch.ones(1, 1, length, 1, dtype=torch.float64)
    for level, nodes in enumerate(pool(x, spec), start=1):
        count = node_count(length, spec.block, level)
        assert nodes.shape[2] == count
        sizes = [covered(node, length, spec.block, level) for node in range(count)]
        assert sum(sizes) == length
        assert all(1 <= size <= spec.block**level for size in sizes)


def _tensors(heads: int = 2, key_heads: int = 2, queries: int = 9, keys: int = 9) -> Qkv:
    return torch.zeros(1, heads, queries, 16), torch.zeros(1, key_heads, keys, 16), torch.zeros(1, key_heads, keys, 16)


@pytest.mark.parametrize("sizes", [{"key_heads": 1}, {"keys": 10}])
def test_what_is_not_there_yet_is_refused(sizes: dict[str, int]) -> None:
    spec = Spec(levels=1, block=4, topk=1, head_dim=16)
    calls: tuple[Attention, ...] = (attention, scalar.attention)
    for call in calls:
        with pytest.raises(UnsupportedError, match="not supported"):
            call(*_tensors(**sizes), spec)


def test_wrong_tensors_are_refused() -> None:
    spec = Spec(levels=1, block=4, topk=1, head_dim=16)
    q, k, v = _tensors()
    with pytest.raises(InputError, match="do not fit"):
        attention(q, k, v[:, :, :5], spec)
    with pytest.raises(InputError, match="4-D"):
        attention(q[0], k, v, spec)
    with pytest.raises(InputTypeError, match="dtype"):
        attention(q, k.half(), v, spec)
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="scale"):
            attention(q, k, v, spec, scale=scale)


def test_wrong_lists_are_refused() -> None:
    spec = Spec(levels=2, block=4, topk=1, head_dim=16)
    q, k, v = _tensors()
    fine, coarse = select(q, k, spec)
    oracles: tuple[Attend, ...] = (attend, dense_mask.attend)
    for call in oracles:
        with pytest.raises(InputError, match="one list per level"):
            call(q, k, v, (fine,), spec)
        with pytest.raises(InputError, match="shape"):
            call(q, k, v, (fine[:, :, :1], coarse), spec)
        with pytest.raises(InputError, match="shape"):
            call(q, k, v, (fine[..., :0], coarse), spec)
        with pytest.raises(InputError, match="do not exist"):
            call(q, k, v, (fine + 3, coarse), spec)
        with pytest.raises(InputError, match="do not exist"):
            call(q, k, v, (fine - 2, coarse), spec)
        with pytest.raises(InputTypeError, match="integers"):
            call(q, k, v, (fine.float(), coarse), spec)
