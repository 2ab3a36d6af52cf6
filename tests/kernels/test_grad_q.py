# SPDX-License-Identifier: Apache-2.0
"""The kernels of the gradient of queries: equal to the reference's autograd by the error rule, for given lists.

What a forward pass leaves behind is computed by the reference, so that a fault of its kernels cannot hide one of these.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llsa_gen import reference
from llsa_gen.ir import names
from llsa_gen.ops import engine
from llsa_gen.ops.execute import held, run_steps
from llsa_gen.ops.launch import target_of
from llsa_gen.ops.state import Run
from llsa_gen.reference import GRADIENT_FACTOR, assert_close_by_rule
from llsa_gen.spec import Spec
from llsa_gen.workloads import Qkv, random_qkv
from tests.kernels.calls import assert_identical, home, placed
from tests.kernels.gradient_specs import LARGE_TOPK, ONE_LEVEL, THREE_LEVELS, TOKENS_ONLY, TWO_LEVELS, WIDE
from tests.kernels.layouts import FILLS, LAYOUTS, Layout, fenced
from tests.strategies import Problem, budget, finite_problems, given_lists, problems

SPECS = {spec.slug: spec for spec in (ONE_LEVEL, TWO_LEVELS, THREE_LEVELS, LARGE_TOPK, TOKENS_ONLY, WIDE)}
EACH_SPEC = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
ANY_SPEC = st.sampled_from(list(SPECS.values()))
SCALE = 0.3
Lists = Sequence[Tensor]
Given = dict[str, Tensor]


# -- what these kernels start from, and what they give ------------------------------------------------------


def prepared(spec: Spec, qkv: Qkv, idx: Lists, *, seed: int = 0, scale: float = SCALE) -> Given:
    """Operands, what a forward pass stores for them, and random gradients of its results."""
    q, k, v = (x.double().cpu() for x in qkv)
    o, lse = reference.attend(q, k, v, home(idx), spec, scale=scale, pool_dtype=qkv[0].dtype)
    generator = torch.Generator().manual_seed(seed)
    made = {
        "o": o.to(qkv[0].dtype),
        "lse": lse.float(),
        "o_grad": torch.randn(o.shape, generator=generator).to(qkv[0].dtype),
        "lse_grad": torch.randn(lse.shape, generator=generator),
    }
    return {**dict(zip("qkv", qkv, strict=True)), **{name: x.to(qkv[0].device) for name, x in made.items()}}


def q_grad_of(spec: Spec, tensors: Mapping[str, Tensor], idx: Lists, scale: float = SCALE) -> Tensor:
    """The gradient that the kernels compute."""
    return engine.gradients(spec, tensors, scale, ("q_grad",), idx)["q_grad"]


def autograd(spec: Spec, tensors: Mapping[str, Tensor], idx: Lists, scale: float, *, exact: bool) -> Tensor:
    """The gradient of the reference, in fp64 or in the dtype of the inputs."""
    q, k, v = (tensors[name].double() if exact else tensors[name] for name in names.OPERANDS)
    options: dict[str, Any] = {"pool_dtype": tensors["q"].dtype} if exact else {"compute_dtype": q.dtype}
    q = q.detach().clone().requires_grad_()
    o, lse = reference.attend(q, k, v, idx, spec, scale=scale, **options)
    total = (o * tensors["o_grad"].to(o.dtype)).sum()
    total = total + (lse.masked_fill(lse == -math.inf, 0.0) * tensors["lse_grad"].to(lse.dtype)).sum()
    return torch.autograd.grad(total, q)[0]


def magnitude(spec: Spec, tensors: Mapping[str, Tensor], idx: Lists, scale: float, exact: Tensor) -> Tensor:
    """What is rounded on the way: the result, and products with o, from which delta is made; in fp32 also logits.

    The half types compute logits in fp32, so that a unit of their roundoff would be far too much for those.
    """
    q, k, o, o_grad = (tensors[name].double() for name in ("q", "k", "o", "o_grad"))
    keys, _ = reference.attend(q, k, k.abs(), idx, spec, scale=scale)
    size: Tensor = exact.abs().max() + scale * (o_grad * o).abs().sum(-1, keepdim=True) * keys
    logits = scale * q.norm(dim=-1, keepdim=True) * k.norm(dim=-1).amax(-1)[..., None, None]
    return size * (1.0 + logits) if spec.dtype == "fp32" else size


def judge(spec: Spec, qkv: Qkv, idx: Lists, *, seed: int = 0, scale: float = SCALE) -> None:
    """The kernels follow the error rule."""
    tensors = prepared(spec, qkv, idx, seed=seed, scale=scale)
    actual = q_grad_of(spec, tensors, idx, scale).cpu()
    there, lists = {name: x.cpu() for name, x in tensors.items()}, home(idx)
    exact, native = (autograd(spec, there, lists, scale, exact=exact) for exact in (True, False))
    size = magnitude(spec, there, lists, scale, exact)
    assert_close_by_rule(actual, exact, native, GRADIENT_FACTOR, magnitude=size, label="q_grad")


def selected(spec: Spec, qkv: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The lists of the reference, where the tensors are."""
    return tuple(entries.to(qkv[0].device) for entries in reference.select(qkv[0].cpu(), qkv[1].cpu(), spec))


def drawn(spec: Spec, sizes: tuple[int, int, int], device: torch.device) -> tuple[Given, tuple[Tensor, ...]]:
    """Random tensors of a batch, heads and a length, with their lists."""
    qkv = placed(random_qkv(spec, *sizes, dtype=None), device)
    idx = selected(spec, qkv)
    return prepared(spec, qkv, idx), idx


# -- right ----------------------------------------------------------------------------------------------------


@EACH_SPEC
@given(data=st.data())
@budget(8)
def test_the_gradient_equals_the_reference(spec: Spec, data: st.DataObject, device: torch.device) -> None:
    problem = data.draw(problems(spec=st.just(spec), high=600))
    idx = tuple(entries.to(device) for entries in data.draw(given_lists(problem)))
    judge(spec, placed(problem.qkv(None), device), idx, seed=problem.seed)


@EACH_SPEC
@pytest.mark.parametrize("length", [1, 3, 2500])
def test_short_and_long_sequences(spec: Spec, length: int, device: torch.device) -> None:
    qkv = placed(random_qkv(spec, 1, 2 if length < 10 else 1, length, dtype=None), device)
    judge(spec, qkv, selected(spec, qkv))


@given(finite_problems(spec=ANY_SPEC, high=200), st.floats(0.01, 4.0))
@budget(25)
def test_unpleasant_inputs_and_any_scale(device: torch.device, problem: Problem, scale: float) -> None:
    qkv = placed(problem.qkv(None), device)
    judge(problem.spec, qkv, selected(problem.spec, qkv), scale=scale)


def test_a_query_without_keys_gets_nothing(device: torch.device) -> None:
    qkv = placed(random_qkv(TOKENS_ONLY, 1, 1, 100, dtype=None), device)
    idx = [torch.full((1, 1, 4, 2), -1, dtype=torch.int32, device=device)]
    idx[0][0, 0, 1] = 2
    judge(TOKENS_ONLY, qkv, idx)
    result = q_grad_of(TOKENS_ONLY, prepared(TOKENS_ONLY, qkv, idx), idx)
    assert not result[0, 0, :32].any() and not result[0, 0, 64:].any()


@EACH_SPEC
@pytest.mark.parametrize("name", ["o", "o_grad"])
def test_no_normaliser_means_no_keys_whatever_else_is_there(spec: Spec, name: str, device: torch.device) -> None:
    tensors, idx = drawn(spec, (1, 1, 70), device)
    clean = q_grad_of(spec, tensors, idx)
    tensors["lse"][0, 0, 5] = -torch.inf
    tensors[name][0, 0, 5] = torch.inf
    clean[0, 0, 5] = 0.0
    assert_identical([q_grad_of(spec, tensors, idx)], [clean])


@EACH_SPEC
@given(st.data())
@budget(6)
def test_delta_is_what_all_keys_share(spec: Spec, device: torch.device, data: st.DataObject) -> None:
    problem = data.draw(problems(spec=st.just(spec), high=300))
    _, o, o_grad = placed(problem.qkv(None), device)
    o = o_grad.flip(-1) if o.shape != o_grad.shape else o
    lse_grad = torch.linspace(-3.0, 3.0, o[..., 0].numel(), device=device).reshape(o.shape[:3])
    target = target_of(device)
    given = {name: held(x, target) for name, x in {"q": o, "k": o, "o": o, "o_grad": o_grad}.items()}
    tensors = {**given, "lse_grad": lse_grad}
    steps = engine.kernels_of(spec, target, (names.DELTA,), direction="backward")
    found = run_steps(steps, Run(spec, o.dtype, 1.0, False, dict(tensors)))[names.DELTA]
    exact = (o.double() * o_grad.double()).sum(-1) - lse_grad.double()
    size = (o.double() * o_grad.double()).abs().sum(-1) + lse_grad.double().abs()
    assert_close_by_rule(found.cpu(), exact.cpu(), exact.float().cpu(), magnitude=2.0 * size.cpu(), label="delta")


# -- memory -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("spec", [ONE_LEVEL, TWO_LEVELS], ids=lambda spec: spec.slug)
def test_strides_change_nothing(layout: Layout, spec: Spec, device: torch.device) -> None:
    tensors, idx = drawn(spec, (2, 3, 77), device)
    expected = q_grad_of(spec, tensors, idx)
    moved = dict(zip("qkv", layout((tensors["q"], tensors["k"], tensors["v"])), strict=True))
    moved["o"], moved["o_grad"], _ = layout((tensors["o"], tensors["o_grad"], tensors["o"]))
    assert_identical([q_grad_of(spec, {**tensors, **moved}, idx)], [expected])


@pytest.mark.parametrize("spec", [ONE_LEVEL, TWO_LEVELS], ids=lambda spec: spec.slug)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 1, 64, -1), (2, 3, 1, -1), (2, 1, 64, -1)])
def test_expanded_gradients_are_read_as_they_are(spec: Spec, shape: tuple[int, ...], device: torch.device) -> None:
    tensors, idx = drawn(spec, (2, 3, 64), device)
    whole = tensors["o_grad"].shape
    tensors["o_grad"] = tensors["o_grad"][tuple(slice(None if size < 0 else size) for size in shape)].expand(whole)
    tensors["lse_grad"] = tensors["lse_grad"][:1, :1].expand(whole[:3])
    plain = {name: x.contiguous() for name, x in tensors.items()}
    assert_identical([q_grad_of(spec, tensors, idx)], [q_grad_of(spec, plain, idx)])


@pytest.mark.parametrize("spec", [ONE_LEVEL, TWO_LEVELS, TOKENS_ONLY], ids=lambda spec: spec.slug)
def test_tokens_may_come_before_heads(spec: Spec, device: torch.device) -> None:
    tensors, idx = drawn(spec, (2, 3, 45), device)
    lists = {names.lists(level): entries for level, entries in enumerate(idx, start=1)}
    steps = engine.kernels_of(spec, target_of(device), ("q_grad",), given=tuple(lists), direction="backward")
    given = {name: held(x, target_of(device)) for name, x in tensors.items()}
    run = Run(spec, tensors["q"].dtype, SCALE, True, {**given, **lists})
    found = run_steps(steps, run)["q_grad"]
    assert found.transpose(1, 2).is_contiguous()
    assert_identical([found.to(tensors["q"].dtype)], [q_grad_of(spec, tensors, idx)])


@EACH_SPEC
def test_nothing_is_read_behind_the_end(spec: Spec, device: torch.device) -> None:
    for length in (1, 6, 37):
        tensors, idx = drawn(spec, (1, 1, length), device)
        one, other = (
            {**tensors, **{name: fenced(tensors[name], 64, fill) for name in ("q", "k", "v", "o", "o_grad")}}
            for fill in FILLS
        )
        assert_identical([q_grad_of(spec, one, idx)], [q_grad_of(spec, other, idx)])


# -- heads apart, and the same every time -------------------------------------------------------------------------


@EACH_SPEC
def test_batches_and_heads_may_change_places(spec: Spec, device: torch.device) -> None:
    tensors, idx = drawn(spec, (2, 3, 300), device)
    result = q_grad_of(spec, tensors, idx)
    assert_identical([q_grad_of(spec, tensors, idx)], [result])
    there = {name: x.flip(0, 1) for name, x in tensors.items()}
    again = q_grad_of(spec, there, [entries.flip(0, 1) for entries in idx])
    assert_identical([again.flip(0, 1)], [result])


@pytest.mark.parametrize("name", ["q", "k", "v", "o", "o_grad", "lse_grad"])
@pytest.mark.parametrize("spec", [ONE_LEVEL, TWO_LEVELS], ids=lambda spec: spec.slug)
def test_a_nan_stays_in_its_head(spec: Spec, name: str, device: torch.device) -> None:
    tensors, idx = drawn(spec, (2, 2, 150), device)
    clean = q_grad_of(spec, tensors, idx)
    tensors[name] = tensors[name].clone()
    tensors[name][0, 0, 70] = torch.nan
    dirty = q_grad_of(spec, tensors, idx)
    assert bool(dirty[0, 0].isnan().any())
    assert_identical([dirty.flatten(0, 1)[1:]], [clean.flatten(0, 1)[1:]])
