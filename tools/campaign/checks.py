# SPDX-License-Identifier: Apache-2.0
"""What must hold for a case: every check compares two independent ways to the same numbers.

A check raises AssertionError where they differ. The distances that are allowed are those of the error rule in
`llsa_gen/reference/error_rule.py`, or a few units of roundoff where both sides compute in fp64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType

import numpy as np
import torch
from hypothesis import strategies as st
from scipy import sparse
from torch import Tensor

from llsa_gen import reference, transpose_indices
from llsa_gen.ir import names
from llsa_gen.ir.interpret import interpret
from llsa_gen.lowering import lower
from llsa_gen.ops import engine
from llsa_gen.reference import GRADIENT_FACTOR, assert_close_by_rule, assert_same_selection, dense_mask, node_count
from llsa_gen.spec import Spec
from llsa_gen.workloads import Qkv
from tests.kernels.calls import FORMS, assert_right, inverted_in, run_attend, run_select
from tests.kernels.gradient_specs import THREE_LEVELS, TOKENS_ONLY, TWO_LEVELS
from tests.strategies import leaves
from tools.campaign.cases import Case, cases

FP64_UNITS = 1e-10
"""Allowed distance of two fp64 computations, relative to what was rounded."""

TYPICAL = 1 / 8
"""Share of a bound of roundoff that is allowed; distances of right kernels reach a twentieth of the bound."""

KERNEL_SPECS = (
    Spec(levels=2, block=4, topk=2, head_dim=16, value_dim=24, dtype="fp32"),
    TWO_LEVELS,
    THREE_LEVELS,
    TOKENS_ONLY,
)
"""The few specs whose kernels meet drawn inputs; other tests have their gradient kernels too, and all of the first."""

Tensors = Mapping[str, Tensor]
Lists = Sequence[Tensor]


@dataclass(frozen=True)
class Check:
    """One thing that must hold.

    Attributes:
        run: Raises AssertionError for a case in which it does not.
        drawn: Where its cases come from.
    """

    run: Callable[[Case], None]
    drawn: st.SearchStrategy[Case]


# -- gradients ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """The gradients of a case by the reference's autograd.

    Attributes:
        given: q, k, v, o, lse, o_grad and lse_grad as the gradient kernels get them.
        idx: The lists.
        exact: The gradients of q, k and v in fp64.
    """

    given: Tensors
    idx: Lists
    exact: tuple[Tensor, ...]


def truth(case: Case, *, wide: bool = False) -> Truth:
    """The truth about a case; with wide the inputs are fp64, and pools are not rounded."""
    qkv = case.qkv(torch.float64 if wide else None)
    idx, (o_grad, lse_grad) = case.idx(), case.upward()
    pools = None if wide else qkv[0].dtype
    o, lse, exact = _autograd(case, _doubled(qkv), idx, torch.float64, pools)
    stored = (o, lse) if wide else (o.to(qkv[0].dtype), lse.float())
    made = dict(zip(names.RESULTS, stored, strict=True)) | {"o_grad": o_grad.to(qkv[0].dtype), "lse_grad": lse_grad}
    return Truth({**dict(zip("qkv", qkv, strict=True)), **made}, idx, exact)


def _doubled(qkv: Qkv) -> Qkv:
    q, k, v = (x.double() for x in qkv)
    return q, k, v


def _autograd(
    case: Case, qkv: Qkv, idx: Lists, dtype: torch.dtype, pools: torch.dtype | None
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """o, lse and the gradients of q, k and v, computed in one dtype."""
    given = leaves(qkv)
    o_grad, lse_grad = case.upward()
    o, lse = reference.attend(*given, idx, case.spec, scale=case.scale, compute_dtype=dtype, pool_dtype=pools)
    total = (o * o_grad.to(o.dtype)).sum() + (lse.masked_fill(lse == -math.inf, 0.0) * lse_grad.to(lse.dtype)).sum()
    return o.detach(), lse.detach(), torch.autograd.grad(total, given)


def magnitudes(case: Case, found: Truth) -> tuple[Tensor, ...]:
    """What is rounded on the way to the gradients of q, k and v: sums of absolute values along each.

    A share is `exp(logit - lse)`, so that a unit of roundoff of either changes it by as many units as that is large;
    the half types compute both in fp32. What bounds sums of errors of one sign is `TYPICAL` of it for both signs.
    """
    spec, scale, given = case.spec, case.scale, found.given
    q, k, v, o, o_grad, lse_grad = (given[name].double() for name in ("q", "k", "v", "o", "o_grad", "lse_grad"))

    def attended(keys_like: Tensor) -> Tensor:
        return reference.attend(q, k, keys_like, found.idx, spec, scale=scale)[0]

    def gathered(x: Tensor) -> Tensor:
        """What of a query's x [B,H,N,E] reaches every key."""
        values = torch.zeros_like(x).requires_grad_()
        return torch.autograd.grad(reference.attend(q, k, values, found.idx, spec, scale=scale)[0], values, x)[0]

    logit = 1.0 + scale * q.norm(dim=-1, keepdim=True) * k.norm(dim=-1).amax(-1)[..., None, None]
    logit = logit + given["lse"].double().nan_to_num(0.0, 0.0, 0.0).abs()[..., None]
    logit = logit if given["q"].dtype in (torch.float32, torch.float64) else torch.ones_like(logit)
    weight = 2.0 * o_grad.abs().sum(-1, keepdim=True) * v.abs().amax() + lse_grad.abs()[..., None]
    shared = (o_grad * o).abs().sum(-1, keepdim=True) + lse_grad.abs()[..., None]
    queries = found.exact[0].abs().max() + TYPICAL * scale * (shared + weight) * attended(k.abs()) * logit
    return queries, gathered(TYPICAL * scale * weight * logit * q.abs()), gathered(0.5 * logit * o_grad.abs())


def judge(case: Case, found: Truth, actual: Sequence[Tensor]) -> None:
    """The error rule for some gradients of q, k and v."""
    dtype = found.given["q"].dtype
    q, k, v = (found.given[name] for name in names.OPERANDS)
    native = _autograd(case, (q, k, v), found.idx, dtype, None)[2]
    sizes = magnitudes(case, found)
    for name, mine, exact, plain, size in zip(names.GRADIENTS, actual, found.exact, native, sizes, strict=True):
        assert_close_by_rule(mine.to(dtype), exact, plain, GRADIENT_FACTOR, magnitude=size, label=name)


def _by_plan(case: Case, found: Truth, dtype: torch.dtype) -> list[Tensor]:
    """The gradients that the plan means."""
    lists = {names.lists(level): entries for level, entries in enumerate(found.idx, start=1)}
    results = {name: found.given[name] for name in ("o", "lse", "o_grad", "lse_grad")}
    plan = lower(case.spec, "backward")
    q, k, v = (found.given[name] for name in names.OPERANDS)
    values = interpret(plan, q, k, v, case.scale, compute_dtype=dtype, given=lists, results=results)
    return [values[name] for name in names.GRADIENTS]


def plan_gradients_fp64(case: Case) -> None:
    """The plan of gradients, interpreted in fp64, equals autograd up to a few units of roundoff."""
    found = truth(case, wide=True)
    actual = _by_plan(case, found, torch.float64)
    for name, mine, exact, size in zip(names.GRADIENTS, actual, found.exact, magnitudes(case, found), strict=True):
        distance, limit = float((mine - exact).abs().max()), FP64_UNITS * float(size.max())
        assert distance <= limit, f"{name}: distance {distance:.3e} to autograd in fp64, allowed {limit:.3e}"


def plan_gradients_fp32(case: Case) -> None:
    """The plan of gradients, interpreted in fp32 on inputs of the spec's dtype, follows the error rule."""
    found = truth(case)
    judge(case, found, _by_plan(case, found, torch.float32))


def kernel_gradients(case: Case) -> None:
    """The gradient kernels follow the error rule."""
    found = truth(case)
    actual = engine.gradients(case.spec, found.given, case.scale, names.GRADIENTS, found.idx)
    judge(case, found, [actual[name] for name in names.GRADIENTS])


# -- forward --------------------------------------------------------------------------------------


def dense_mask_agrees(case: Case) -> None:
    """The reference and a dense softmax with a mask give the same outputs and gradients in fp64."""
    q, k, v = case.qkv(torch.float64)
    found = truth(case, wide=True)
    given = leaves((q, k, v))
    o, lse = dense_mask.attend(*given, found.idx, case.spec, scale=case.scale)
    total = (o * found.given["o_grad"]).sum()
    total = total + (lse.masked_fill(lse == -math.inf, 0.0) * found.given["lse_grad"].double()).sum()
    torch.testing.assert_close(lse.detach(), found.given["lse"], rtol=1e-9, atol=1e-9)
    sizes = magnitudes(case, found)
    for name, mine, exact, size in zip("qkv", torch.autograd.grad(total, given), found.exact, sizes, strict=True):
        distance, limit = float((mine - exact).abs().max()), FP64_UNITS * float(size.max())
        assert distance <= limit, f"gradient of {name}: distance {distance:.3e}, allowed {limit:.3e}"


def plan_selects(case: Case) -> None:
    """The plan selects the best scores, and attends what it selected as the reference does.

    In fp64: the last bit of a pool in a smaller type depends on the order in which its tokens are added.
    """
    q, k, v = (x.double() for x in case.qkv())
    result = interpret(lower(case.spec), q, k, v, case.scale, compute_dtype=torch.float64)
    idx = [result[names.lists(level)] for level in range(1, case.spec.depth + 1)]
    assert_same_selection(idx, q, k, case.spec)
    o, lse = reference.attend(q, k, v, idx, case.spec, scale=case.scale)
    size = 1e-9 * (1.0 + float(v.double().abs().max()))
    torch.testing.assert_close(result["o"], o, rtol=1e-9, atol=size)
    torch.testing.assert_close(result["lse"], lse, rtol=1e-9, atol=1e-9)


def kernels_attend(case: Case) -> None:
    """The kernels select the best scores and follow the error rule."""
    q, k, v = case.qkv()
    assert_same_selection(run_select(case.spec, q, k), q, k, case.spec)
    idx = case.idx()
    result = run_attend(case.spec, q, k, v, idx, scale=case.scale)
    assert_right(case.spec, (q, k, v), idx, result, scale=case.scale)


def lists_are_transposed(case: Case) -> None:
    """The transposed lists of every level are scipy's, in as many launches as it may be."""
    for (level, entries), form in product(enumerate(case.idx(), start=1), FORMS):
        nodes = node_count(case.length, case.spec.block, level)
        with inverted_in(form):
            offsets, rows = (x.flatten(0, 1).numpy() for x in transpose_indices(entries, nodes))
        for head, ends, takers in zip(entries.flatten(0, 1).numpy(), offsets, rows, strict=True):
            named = head >= 0
            bounds = np.concatenate([[0], np.cumsum(named.sum(1))])
            ones = np.ones(int(bounds[-1]), dtype=np.int8)
            columns = sparse.csr_matrix((ones, head[named], bounds), shape=(head.shape[0], nodes)).tocsc()
            assert np.array_equal(ends, columns.indptr), f"level {level}: offsets differ from scipy's"
            assert np.array_equal(takers[: columns.nnz], columns.indices), f"level {level}: rows differ from scipy's"
            assert (takers[columns.nnz :] == -1).all(), f"level {level}: rows end in {takers[columns.nnz :]}"


_OF_KERNELS = cases(st.sampled_from(KERNEL_SPECS))

CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        "plan_gradients_fp64": Check(plan_gradients_fp64, cases()),
        "plan_gradients_fp32": Check(plan_gradients_fp32, cases()),
        "dense_mask_agrees": Check(dense_mask_agrees, cases()),
        "plan_selects": Check(plan_selects, cases(lists=("selected",))),
        "lists_are_transposed": Check(lists_are_transposed, cases()),
        "kernels_attend": Check(kernels_attend, _OF_KERNELS),
        "kernel_gradients": Check(kernel_gradients, _OF_KERNELS),
    }
)
"""The checks by name."""
