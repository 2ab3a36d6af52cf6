# SPDX-License-Identifier: Apache-2.0
"""Gradients through the public functions: right, deterministic, only where wanted, and refused where there are none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import llsa_gen
from llsa_gen import reference
from llsa_gen.errors import UnsupportedError
from llsa_gen.ops.launch import HeadLaunch, Launch, StreamLaunch, TaskLaunch
from llsa_gen.reference import GRADIENT_FACTOR, assert_close_by_rule
from tests.torch_face.calls import KEYWORDS, MEMORY, SMALL, Inputs, inputs, lists_of, refused

Gradients = tuple[Tensor, ...]


def attention(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """o and lse of the small spec."""
    o, lse = llsa_gen.llsa_attention(q, k, v, **KEYWORDS, **options, return_lse=True)
    return o, lse


def leaves(qkv: Inputs) -> Inputs:
    q, k, v = (x.detach().requires_grad_() for x in qkv)
    return q, k, v


def upward(qkv: Inputs) -> tuple[Tensor, Tensor]:
    """Gradients of o and lse that mean nothing but are not constant."""
    o_grad = qkv[2].flip(2).detach()
    return o_grad, o_grad[..., 0].float()


def gradients(call: Callable[..., tuple[Tensor, Tensor]], qkv: Inputs) -> Gradients:
    given = leaves(qkv)
    return torch.autograd.grad(call(*given), given, upward(qkv))


def expected(qkv: Inputs, compute_dtype: torch.dtype, scale: float | None = None) -> Gradients:
    """The gradients of the reference, with the lists that are selected."""
    q, k, v = (x.detach().cpu() for x in qkv)
    idx = [entries.cpu() for entries in lists_of(qkv[0].detach(), qkv[1].detach())]
    pools = q.dtype if compute_dtype == torch.float64 else None
    wide = q, k, v = leaves((q.to(compute_dtype), k.to(compute_dtype), v.to(compute_dtype)))
    o, lse = reference.attend(q, k, v, idx, SMALL, scale=scale, compute_dtype=compute_dtype, pool_dtype=pools)
    o_grad, lse_grad = (x.cpu() for x in upward(qkv))
    return torch.autograd.grad([o, lse], wide, [o_grad.to(o.dtype), lse_grad.to(lse.dtype)])


def assert_right(found: Gradients, qkv: Inputs, scale: float | None = None) -> None:
    exact, native = expected(qkv, torch.float64, scale), expected(qkv, qkv[0].dtype, scale)
    for name, mine, right, plain in zip("qkv", found, exact, native, strict=True):
        assert_close_by_rule(mine.cpu(), right, plain, GRADIENT_FACTOR, label=f"gradient of {name}")


def assert_identical(mine: Gradients, theirs: Gradients) -> None:
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("length", [1, 3, 70, 257])
def test_gradients_follow_the_error_rule(length: int, dtype: torch.dtype, device: torch.device) -> None:
    qkv = inputs(device, length=length, dtype=dtype)
    assert_right(gradients(attention, qkv), qkv)


@pytest.mark.parametrize("memory", MEMORY)
def test_memory_order_of_inputs_changes_no_bit(memory: str, device: torch.device) -> None:
    q, k, v = (MEMORY[memory](x) for x in inputs(device, length=70))
    assert_identical(
        gradients(attention, (q, k, v)), gradients(attention, (q.contiguous(), k.contiguous(), v.contiguous()))
    )


def test_layout_scale_and_lists(device: torch.device) -> None:
    qkv = inputs(device, length=70)
    assert_right(gradients(lambda *x: attention(*x, scale=0.5), qkv), qkv, 0.5)

    def turned(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        o, lse = attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), layout="BNHD")
        return o.transpose(1, 2), lse

    idx = lists_of(qkv[0], qkv[1])

    def attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        o, lse = llsa_gen.llsa_attend(q, k, v, idx, block_size=SMALL.block, return_lse=True)
        return o, lse

    plain = gradients(attention, qkv)
    assert_identical(gradients(turned, qkv), plain)
    assert_identical(gradients(attend, qkv), plain)


def test_upward_gradients_may_be_broadcast_or_strided(device: torch.device) -> None:
    qkv = inputs(device, length=33)
    for make in (lambda o: torch.ones_like(o[:, :, :1, :1]).expand_as(o), MEMORY["features_apart"]):
        given = leaves(qkv)
        o, _ = attention(*given)
        o_grad: Tensor = make(o.detach())
        kept = torch.autograd.grad(o, given, o_grad, retain_graph=True)
        assert_identical(kept, torch.autograd.grad(o, given, o_grad.contiguous()))


def test_the_same_bits_again_in_another_order_and_under_checkpointing(device: torch.device) -> None:
    qkv = inputs(device, length=257)
    first = gradients(attention, qkv)
    assert_identical(gradients(attention, qkv), first)
    again = gradients(lambda *x: checkpoint(attention, *x, use_reentrant=False), qkv)
    assert_identical(again, first)
    turned = gradients(attention, tuple(x.flip(0, 1) for x in qkv))  # type: ignore[arg-type]  # three of them
    assert_identical(tuple(x.flip(0, 1) for x in turned), first)


@pytest.mark.parametrize("wanted", ["q", "k", "v"])
def test_nothing_is_computed_for_what_needs_no_gradient(
    wanted: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    qkv = inputs(device, length=70)
    given = {name: x.detach().requires_grad_(name == wanted) for name, x in zip("qkv", qkv, strict=True)}
    o, _ = attention(*given.values())
    ran: list[str] = []

    def noted(run: Callable[..., None]) -> Callable[..., None]:
        def noting(launch: Launch, *arguments: Any) -> None:
            ran.extend(kernel.name for kernel in launch.kernels)
            run(launch, *arguments)

        return noting

    for kind in (TaskLaunch, StreamLaunch, HeadLaunch):
        monkeypatch.setattr(kind, "run", noted(kind.run))
    (alone,) = torch.autograd.grad(o.square().sum(), [given[wanted]])
    assert any("grad_q" in name for name in ran) == (wanted == "q")
    assert any("grad_kv" in name for name in ran) == (wanted != "q")
    together = leaves(qkv)
    all_of_them = torch.autograd.grad(attention(*together)[0].square().sum(), together)
    assert torch.equal(alone, all_of_them["qkv".index(wanted)])


def test_no_grad_keeps_nothing(device: torch.device) -> None:
    given = leaves(inputs(device, length=9))
    with torch.no_grad():
        o, lse = attention(*given)
    assert o.grad_fn is None and lse.grad_fn is None


def test_a_nan_stays_in_its_head(device: torch.device) -> None:
    qkv = inputs(device, length=70)
    clean = gradients(attention, qkv)
    qkv[1][0, 1, 5, 3] = torch.nan
    for mine, theirs in zip(gradients(attention, qkv), clean, strict=True):
        assert torch.equal(mine[1], theirs[1]) and torch.equal(mine[0, 0], theirs[0, 0])


def test_second_derivatives_are_refused(device: torch.device) -> None:
    given = leaves(inputs(device, length=9))
    (first, *_) = torch.autograd.grad(attention(*given)[0].square().sum(), given, create_graph=True)
    refused(UnsupportedError, lambda: torch.autograd.grad(first.sum(), given), "second derivatives", "create_graph")


def test_inputs_changed_in_place_are_noticed(device: torch.device) -> None:
    q, k, v = inputs(device, length=9)
    weight = torch.ones((), device=device, requires_grad=True)
    q = q * weight
    o, _ = attention(q, k, v)
    q.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(o.sum(), [weight])


@pytest.mark.parametrize("empty", [{"length": 0}, {"batch": 0}, {"heads": 0}], ids=str)
def test_empty_inputs_have_empty_gradients(empty: dict[str, Any], device: torch.device) -> None:
    qkv = inputs(device, **empty)
    assert [x.shape for x in gradients(attention, qkv)] == [x.shape for x in qkv]


def test_autocast_gives_gradients_in_the_dtype_of_the_parameters(device: torch.device) -> None:
    given = leaves(inputs(device, length=33))
    with torch.autocast(device.type, dtype=torch.bfloat16):
        o, _ = attention(*given)
    assert o.dtype == torch.bfloat16
    found = torch.autograd.grad(o.float().sum(), given)
    assert all(x.dtype == torch.float32 and bool(x.isfinite().all()) for x in found)
