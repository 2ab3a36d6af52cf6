# SPDX-License-Identifier: Apache-2.0
"""The call of an op from the public functions: whoever in torch may want to see it does, and nobody else is asked."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from enum import Enum
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import llsa_gen
from llsa_gen.ops.calls import forget_passes
from llsa_gen.targets import CPU_VARIABLE
from tests.torch_face.calls import FIELDS, KEYWORDS, SMALL, inputs, lists_of
from tests.torch_face.test_gradients import attention

OP: Any = llsa_gen.load(SMALL.slug)
LISTS = [torch.zeros(2, 2, rows, SMALL.topks[0], dtype=torch.int32) for rows in (18, 5)]  # of 70 tokens


def lists_on(device: torch.device) -> list[Tensor]:
    """Lists for inputs on a device."""
    return [idx.to(device) for idx in LISTS]


CALLS: dict[str, Callable[..., Any]] = {
    "attention": lambda q, k, v: llsa_gen.llsa_attention(q, k, v, **KEYWORDS),
    "select": lambda q, k, _: lists_of(q, k),
    "attend": lambda q, k, v: llsa_gen.llsa_attend(q, k, v, lists_on(q.device), block_size=SMALL.block),
    SMALL.slug: lambda q, k, v: OP.attention(q, k, v, return_lse=True),
    f"{SMALL.slug}_select": lambda q, k, _: OP.select(q, k),
    f"{SMALL.slug}_attend": lambda q, k, v: OP.attend(q, k, v, lists_on(q.device)),
}
"""Calls by the name of the op that they come to."""
Call = Callable[..., Any]


class DispatchMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes what torch is asked to compute."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ops: list[str] = []

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ops.append(op.name())
        return op(*args, **(kwargs or {}))


class FunctionMode(TorchFunctionMode):
    """Notes what torch is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[str] = []

    def __torch_function__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.ops.append(str(op))
        return op(*args, **(kwargs or {}))


class Noting(Tensor):
    """A tensor of another class, which notes what it is given to."""

    ops: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.ops.append(str(op))
        return super().__torch_function__(op, types, args, kwargs)  # type: ignore[no-untyped-call]


def seen_by_a_mode(mode: type[DispatchMode] | type[FunctionMode]) -> Callable[..., list[str]]:
    def seen(call: Call, *qkv: Tensor) -> list[str]:
        here = mode()
        with here:
            call(*qkv)
        return here.ops

    return seen


def seen_by_a_profiler(call: Call, *qkv: Tensor) -> list[str]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        call(*qkv)
    return [event.name for event in profile.events()]


def seen_by_a_tracer(call: Call, *qkv: Tensor) -> list[str]:
    return [str(node.target) for node in make_fx(call)(*qkv).graph.nodes]


def seen_by_a_jit(call: Call, *qkv: Tensor) -> list[str]:
    traced: Any = torch.jit.trace(call, qkv, check_trace=False)  # type: ignore[no-untyped-call]
    return [node.kind() for node in traced.graph.nodes()]


def seen_by_a_tensor(call: Call, *qkv: Tensor) -> list[str]:
    Noting.ops.clear()
    call(*(x.as_subclass(Noting) for x in qkv))
    return Noting.ops


LISTENERS: dict[str, Callable[..., list[str]]] = {
    "dispatch mode": seen_by_a_mode(DispatchMode),
    "function mode": seen_by_a_mode(FunctionMode),
    "profiler": seen_by_a_profiler,
    "make_fx": seen_by_a_tracer,
    "jit trace": seen_by_a_jit,
    "subclass": seen_by_a_tensor,
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("listener", LISTENERS)
@pytest.mark.parametrize("name", CALLS)
def test_who_listens_sees_the_op(name: str, listener: str, device: torch.device) -> None:
    qkv = inputs(device)
    CALLS[name](*qkv)  # its pass is bound now
    seen = LISTENERS[listener](CALLS[name], *qkv)
    spelled = (f"llsa_gen::{name}", f"llsa_gen.{name}.default", f"llsa_gen.{name}")
    assert any(op in spelled for op in seen), seen


def test_a_mode_sees_a_call_with_gradients(device: torch.device) -> None:
    q, k, v = (x.requires_grad_() for x in inputs(device))
    o = CALLS["attention"](q, k, v)
    with DispatchMode() as seen:
        again = CALLS["attention"](q, k, v)
    assert "llsa_gen::attention" in seen.ops and torch.equal(o, again)
    assert o.requires_grad and again.requires_grad


WAYS: dict[str, Callable[..., Any]] = {
    "plainly": lambda call, *qkv: call(*qkv),
    "parameters": torch.no_grad()(lambda call, *qkv: call(*map(torch.nn.Parameter, qkv))),
    "inference mode": torch.inference_mode()(lambda call, *qkv: call(*qkv)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CALLS)
def test_nobody_is_asked_where_nobody_listens(
    name: str, way: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    qkv = inputs(device)
    before = CALLS[name](*qkv)
    monkeypatch.delattr(torch._ops.OpOverload, "__call__")
    after = WAYS[way](CALLS[name], *qkv)
    pairs = zip(before, after, strict=True) if isinstance(before, tuple) else [(before, after)]
    assert all(torch.equal(one, other) for one, other in pairs)


HELD: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "negated": (torch._neg_view, torch.neg),
    "zero": (lambda x: torch._efficientzerotensor(x.shape, device=x.device), torch.zeros_like),
    "functional": (torch._to_functional_tensor, torch.clone),
}
"""Tensors whose memory does not hold their values, and those values."""


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("place", range(3), ids="qkv".__getitem__)
def test_values_are_read_that_memory_does_not_hold(held: str, place: int, device: torch.device) -> None:
    qkv, (hidden, plain) = list(inputs(device)), HELD[held]
    given, expected = qkv[:], qkv[:]
    given[place], expected[place] = hidden(qkv[place]), plain(qkv[place])
    o = CALLS["attention"](*given)
    o = torch._from_functional_tensor(o) if torch._is_functional_tensor(o) else o
    assert torch.equal(o, CALLS["attention"](*expected))


class Enrichment(str, Enum):  # noqa: UP042  (its str() is not its value)
    """As users write it who like names."""

    NONE = "none"


@pytest.mark.parametrize("needs_gradient", [False, True])
def test_a_text_may_be_of_its_own_class(needs_gradient: bool, device: torch.device) -> None:
    q, k, v = (x.requires_grad_(needs_gradient) for x in inputs(device, length=33))
    for one in (Enrichment.NONE, np.str_("none")):
        forget_passes()
        (o, _), (plain, _) = (attention(q, k, v, enrichment=text) for text in (one, "none"))
        assert torch.equal(o, plain)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda op: pickle.loads(pickle.dumps(op))])
def test_a_copy_of_an_op_is_that_op(copied: Callable[[Any], Any], device: torch.device) -> None:
    op = copied(OP)
    assert op == OP and op.name == OP.name
    assert torch.equal(op.attention(*inputs(device)), OP.attention(*inputs(device)))


def test_a_call_in_inference_mode_gives_inference_tensors(device: torch.device) -> None:
    with torch.inference_mode():
        o = llsa_gen.llsa_attention(*inputs(device), **KEYWORDS)
    assert o.is_inference() and not o.requires_grad


def test_a_transform_maps_the_op(device: torch.device) -> None:
    stacked = [torch.stack((x, x.flip(2))) for x in inputs(device)]
    plainly = torch.ops.llsa_gen.attention
    expected = torch.stack([plainly(*(x[at] for x in stacked), *FIELDS)[0] for at in range(2)])
    assert torch.equal(torch.vmap(CALLS["attention"])(*stacked), expected)


def test_shapes_are_computed_on_meta(device: torch.device) -> None:
    q, k, v = (x.to("meta") for x in inputs(device))
    assert CALLS["attention"](q, k, v).is_meta and CALLS["attention"](q, k, v).shape == v.shape


@pytest.mark.parametrize(
    ("value", "said"), [("c", "c"), (" cpu ", "cpu"), ("gpu", "environment variable LLSA_GEN_CPU_TARGET")]
)
def test_the_environment_chooses_the_kernels(value: str, said: str) -> None:
    program = "import torch; from llsa_gen.ops.launch import target_of; print(target_of(torch.device('cpu')))"
    command, environment = [sys.executable, "-c", program], {**os.environ, CPU_VARIABLE: value}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert said in (done.stdout.split() if done.returncode == 0 else done.stderr)
    assert (done.returncode == 0) == (value != "gpu")
