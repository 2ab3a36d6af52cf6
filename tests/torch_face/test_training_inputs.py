# SPDX-License-Identifier: Apache-2.0
"""What a training loop may do wrong, or do unusually: a right gradient or a clear error, never a wrong number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import llsa_gen
from llsa_gen import reference
from llsa_gen.errors import InputTypeError, LlsaError, UnsupportedError
from llsa_gen.ops.op import Op
from tests.torch_face.calls import FIELDS, KEYWORDS, SMALL, Inputs, inputs, lists_of, refused
from tests.torch_face.test_gradients import assert_identical, attention, gradients, leaves, upward
from tools.campaign.cases import Case
from tools.campaign.checks import judge, truth

BACKWARD: Any = torch.ops.llsa_gen.backward.default


def spoilt(x: Tensor, *place: int) -> Tensor:
    """A copy with one NaN."""
    x = x.clone()
    x[place] = torch.nan
    return x


# -- gradients that do not exist ------------------------------------------------------------------


def test_an_op_without_gradients_says_so_whatever_needs_one(device: torch.device) -> None:
    op = Op(replace(SMALL, gradient=False))
    for wanted in range(3):
        given = [x.requires_grad_(place == wanted) for place, x in enumerate(inputs(device, length=9))]
        o = op.attention(*given)
        assert isinstance(o, Tensor)  # no log-sum-exps were asked for
        words = ("without gradients", "leave out --no-gradient")
        refused(UnsupportedError, o.sum().backward, *words)
        assert given[wanted].grad is None
    with torch.no_grad():
        assert isinstance(op.attention(*inputs(device, length=9)), Tensor)


def test_what_cannot_be_differentiated_is_not(device: torch.device) -> None:
    q, k, v = leaves(inputs(device, length=9))
    idx = llsa_gen.llsa_select(q, k, **KEYWORDS)
    assert not any(entries.requires_grad for entries in idx)
    with torch.inference_mode():
        o, _ = attention(q, k, v)
    with pytest.raises(RuntimeError, match="does not require grad"):
        o.sum().backward()  # type: ignore[no-untyped-call]


# -- gradients that come in -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_an_upward_gradient_of_another_dtype_counts_as_rounded_to_the_right_one(
    dtype: torch.dtype, device: torch.device
) -> None:
    given = leaves(inputs(device, length=33))
    o, _ = attention(*given)
    o_grad = torch.randn(o.shape, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    found = torch.autograd.grad(o, given, o_grad, retain_graph=True)
    assert_identical(found, torch.autograd.grad(o, given, o_grad.to(o.dtype)))


@pytest.mark.parametrize("name", ["o_grad", "lse_grad", "o", "lse"])
@pytest.mark.parametrize("change", ["dtype", "shape", "device"])
def test_the_op_of_gradients_refuses_what_does_not_fit(name: str, change: str, device: torch.device) -> None:
    q, k, v = inputs(device, length=9)
    o, lse = attention(q, k, v)
    given = {"o_grad": o, "lse_grad": lse, "o": o, "lse": lse}
    wrong = {"dtype": lambda x: x.double(), "shape": lambda x: x[:, :, 1:], "device": lambda x: x.to("meta")}
    given[name] = wrong[change](given[name])
    tensors = (given["o_grad"], given["lse_grad"], q, k, v, given["o"], given["lse"])
    with pytest.raises((LlsaError, NotImplementedError)) as caught:
        BACKWARD(*tensors, [], [True] * 3, *FIELDS, 0.25, False)
    assert name in str(caught.value) or change == "device"
    if change == "dtype":
        assert type(caught.value) is InputTypeError


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "one number": lambda x: x.new_ones(()).expand(x.shape),
    "one token": lambda x: x[:, :, :1].expand(x.shape),
    "one head": lambda x: x[:, :1].expand(x.shape),
    "features apart": lambda x: x.mT.contiguous().mT,
    "tokens first": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "every second feature": lambda x: x.repeat_interleave(2, dim=3)[..., ::2],
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strides_of_upward_gradients_change_no_bit(view: str, dtype: torch.dtype, device: torch.device) -> None:
    given = leaves(inputs(device, length=33, dtype=dtype))
    o, lse = attention(*given)
    o_grad, lse_grad = upward(given)
    o_grad = VIEWS[view](o_grad)
    lse_grad = lse_grad[:, :1, :1].expand(lse_grad.shape)
    found = torch.autograd.grad([o, lse], given, [o_grad, lse_grad], retain_graph=True)
    plain = [o_grad.contiguous(), lse_grad.contiguous()]
    assert_identical(found, torch.autograd.grad([o, lse], given, plain))


def test_gradients_add_up_over_two_backward_passes(device: torch.device) -> None:
    given = leaves(inputs(device, length=33))
    total = attention(*given)[0].square().sum()
    total.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    once = [x.grad.clone() for x in given if x.grad is not None]
    total.backward()  # type: ignore[no-untyped-call]
    assert all(torch.equal(x.grad, 2 * first) for x, first in zip(given, once, strict=True) if x.grad is not None)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        total.backward()  # type: ignore[no-untyped-call]


# -- tensors that change between the passes -------------------------------------------------------


@pytest.mark.parametrize("changed", ["q", "k", "v", "o", "lse"])
def test_what_is_changed_in_place_before_the_backward_pass_is_noticed(changed: str, device: torch.device) -> None:
    weight = torch.ones((), device=device, requires_grad=True)
    tensors = {name: x * weight for name, x in zip("qkv", inputs(device, length=9), strict=True)}
    tensors["o"], tensors["lse"] = attention(*tensors.values())
    total = tensors["o"].sum() + tensors["lse"].sum()
    with torch.no_grad():
        tensors[changed].mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()  # type: ignore[no-untyped-call]


def test_given_lists_changed_in_place_are_noticed(device: torch.device) -> None:
    given = leaves(inputs(device, length=9))
    idx = lists_of(given[0].detach(), given[1].detach())
    o = llsa_gen.llsa_attend(*given, idx, block_size=SMALL.block)
    assert isinstance(o, Tensor)
    idx[0].fill_(-1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        o.sum().backward()  # type: ignore[no-untyped-call]


# -- unpleasant values ----------------------------------------------------------------------------


@pytest.mark.parametrize("inputs_of", ["constant", "ties", "duplicated_rows", "negative_zero", "skewed"])
@pytest.mark.parametrize("length", [2, 30])
def test_equal_scores(inputs_of: str, length: int, device: torch.device) -> None:
    case = Case(SMALL, 2, 2, length, inputs_of, "selected", 0, 0.25)
    found = truth(case)
    q, k, v = leaves(tuple(x.to(device) for x in case.qkv()))  # type: ignore[arg-type]  # three of them
    results, above = attention(q, k, v), [found.given[name].to(device) for name in ("o_grad", "lse_grad")]
    judge(case, found, [x.cpu() for x in torch.autograd.grad(results, (q, k, v), above)])


@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_a_nan_in_one_head_leaves_the_others_as_they_are(name: str, device: torch.device) -> None:
    qkv = dict(zip("qkv", inputs(device, length=70), strict=True))
    clean = gradients(attention, tuple(qkv.values()))  # type: ignore[arg-type]  # three of them
    qkv[name] = spoilt(qkv[name], 1, 0, 33, 2)
    dirty = gradients(attention, tuple(qkv.values()))  # type: ignore[arg-type]  # as above
    for mine, theirs in zip(dirty, clean, strict=True):
        assert torch.equal(mine[0], theirs[0]) and torch.equal(mine[1, 1], theirs[1, 1])
    assert any(bool(x[1, 0].isnan().any()) for x in dirty)
    for level, entries in enumerate(lists_of(qkv["q"], qkv["k"]), start=1):
        assert int(entries.min()) >= -1 and int(entries.max()) < reference.node_count(70, SMALL.block, level)


def test_a_nan_in_an_upward_gradient_stays_in_its_head(device: torch.device) -> None:
    given = leaves(inputs(device, length=70))
    o, _ = attention(*given)
    o_grad = upward(given)[0]
    clean = torch.autograd.grad(o, given, o_grad, retain_graph=True)
    dirty = torch.autograd.grad(o, given, spoilt(o_grad, 0, 1, 5, 7))
    for mine, theirs in zip(dirty, clean, strict=True):
        assert torch.equal(mine[1], theirs[1]) and torch.equal(mine[0, 0], theirs[0, 0])
    assert bool(dirty[0][0, 1, 5].isnan().any())


# -- autocast, and what is kept -------------------------------------------------------------------


def outcome(call: Callable[..., Tensor], qkv: Inputs, autocast: torch.dtype | None) -> tuple[torch.dtype, ...]:
    """The dtypes of the output and of the gradients of a training step, whose backward pass is outside of autocast."""
    given = leaves(qkv)
    with torch.autocast(qkv[0].device.type, dtype=autocast, enabled=autocast is not None):
        o = call(*given)
    found = torch.autograd.grad(o.float().square().sum(), given)
    assert all(bool(x.isfinite().all()) and bool(x.any()) for x in found)
    return (o.dtype, *(x.dtype for x in found))


@pytest.mark.parametrize("autocast", [None, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_dtypes_under_autocast_are_those_of_dense_attention(
    dtype: torch.dtype, autocast: torch.dtype | None, device: torch.device
) -> None:
    qkv = inputs(device, length=33, dtype=dtype)
    mine = outcome(lambda q, k, v: attention(q, k, v)[0], qkv, autocast)
    assert mine == outcome(F.scaled_dot_product_attention, qkv, autocast)


def saved_by(call: Callable[[], object]) -> list[Tensor]:
    """What a call keeps for its backward pass."""
    kept: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        kept.append(x)
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        call()
    return kept


def test_a_call_keeps_its_operands_and_results_and_nothing_else(device: torch.device) -> None:
    q, k, v = leaves(inputs(device, length=70))
    kept = saved_by(lambda: attention(q, k, v))
    assert {tuple(x.shape) for x in kept} == {tuple(q.shape), tuple(v.shape), tuple(q.shape[:3])} and len(kept) == 5
    assert {x.data_ptr() for x in kept} >= {x.data_ptr() for x in (q, k, v)}


def test_without_gradients_nothing_is_kept(device: torch.device) -> None:
    plain = inputs(device, length=9)
    assert saved_by(lambda: attention(*plain)) == []
    given = leaves(plain)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert saved_by(lambda: attention(*given)) == []
