# SPDX-License-Identifier: Apache-2.0
"""Every op passes `torch.library.opcheck`: schema, autograd registration, fake kernel, dynamic compilation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import llsa_gen
from llsa_gen.errors import UnsupportedError
from llsa_gen.ops.op import Op
from tests.torch_face.calls import FIELDS, MEMORY, SMALL, Inputs, inputs, lists_of, refused

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WITHOUT_BACKWARD = ("test_schema", "test_autograd_registration", "test_faketensor")


def op_of(name: str, dtype: torch.dtype) -> Any:
    """An op by the end of its name: a general one, or one of the small spec."""
    if name in ("attention", "select", "attend"):
        return getattr(torch.ops.llsa_gen, name).default
    short = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]
    slug = SMALL.slug.removesuffix("fp32") + short
    llsa_gen.load(slug)
    return getattr(torch.ops.llsa_gen, slug + name.removeprefix("slug")).default


def arguments(name: str, qkv: Inputs) -> tuple[Any, ...]:
    """What an op is called with, without the optional arguments."""
    q, k, _ = qkv
    tensors = (q, k) if name.endswith("select") else qkv
    lists = (list(lists_of(q.detach(), k.detach())),) if name.endswith("attend") else ()
    return (*tensors, *lists, *(() if name.startswith("slug") else FIELDS))


OPS = ("attention", "select", "attend", "slug", "slug_select", "slug_attend")


def check(op: Any, given: tuple[Any, ...], **options: Any) -> None:
    results = opcheck(op, given, **options)
    assert set(results.values()) == {"SUCCESS"}, results


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("name", OPS)
def test_memory_layouts(name: str, memory: str, device: torch.device) -> None:
    q, k, v = (MEMORY[memory](x) for x in inputs(device, length=21))
    check(op_of(name, q.dtype), arguments(name, (q, k, v)))


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("name", OPS)
def test_dtypes(name: str, dtype: torch.dtype, device: torch.device) -> None:
    check(op_of(name, dtype), arguments(name, inputs(device, length=9, dtype=dtype)))


@pytest.mark.parametrize("name", [name for name in OPS if not name.endswith("select")])
def test_optional_arguments(name: str, device: torch.device) -> None:
    given = arguments(name, inputs(device, length=18))
    check(op_of(name, torch.float32), (*given, 0.5, True))


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("empty", [{"length": 0}, {"batch": 0}, {"heads": 0}], ids=str)
def test_nothing_to_do(name: str, empty: dict[str, Any], device: torch.device) -> None:
    check(op_of(name, torch.float32), arguments(name, inputs(device, **empty)))


@pytest.mark.parametrize("name", OPS)
def test_tensors_that_require_grad(name: str, device: torch.device) -> None:
    qkv = inputs(device, length=9)
    for x in qkv:
        x.requires_grad_()
    without = name.startswith("slug") and not SMALL.gradient
    check(op_of(name, torch.float32), arguments(name, qkv), **({"test_utils": WITHOUT_BACKWARD} if without else {}))


@pytest.mark.parametrize("needed", [(True, True, True), (True, False, False), (False, False, True), (False,) * 3])
def test_the_op_of_gradients(needed: tuple[bool, ...], device: torch.device) -> None:
    q, k, v = inputs(device, length=21)
    o, lse = torch.ops.llsa_gen.attention(q, k, v, *FIELDS)
    given = (torch.ones_like(o), torch.ones_like(lse), q, k, v, o, lse)
    check(torch.ops.llsa_gen.backward.default, (*given, [], list(needed), *FIELDS))
    check(torch.ops.llsa_gen.backward.default, (*given, list(lists_of(q, k)), list(needed), *FIELDS, 0.5, True))


def test_an_op_without_gradients_says_so(device: torch.device) -> None:
    q, k, v = (x.requires_grad_() for x in inputs(device, length=9))
    op = Op(replace(SMALL, gradient=False))
    o, lse = op.attention(q, k, v, return_lse=True)
    refused(UnsupportedError, lambda: torch.autograd.grad(o.sum(), [q]), "built without gradients")
    assert lse.requires_grad


def test_lists_carry_no_gradient(device: torch.device) -> None:
    q, k, _ = inputs(device, length=9)
    lists: list[Tensor] = list(lists_of(q.requires_grad_(), k.requires_grad_()))
    assert not any(entries.requires_grad for entries in lists)
