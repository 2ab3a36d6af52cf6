# SPDX-License-Identifier: Apache-2.0
"""Verdicts about one call: lists, results and gradients against the reference, and the same bits when run again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from llsa_gen import reference
from llsa_gen.evidence.calls import Results, Trained, leaves, select, train, upward_gradients
from llsa_gen.evidence.record import finite
from llsa_gen.spec import Spec
from llsa_gen.workloads import Qkv


def examine(spec: Spec, qkv: Qkv, *, seed: int = 0, first_head: bool = False) -> dict[str, Any]:
    """Runs forward and backward passes twice and judges them.

    Args:
        spec: What is computed.
        qkv: [B,H,N,...], anything that the public functions take.
        seed: Of the gradients that reach o and lse.
        first_head: Whether only the first head is compared with the reference; the others run the same code.

    Returns:
        ``right``, ``why`` not, and distances to fp64, plain and as a multiple of plain torch's in the same dtype.
    """
    q, k, v = qkv
    idx, upward = select(spec, q, k), upward_gradients(v, seed)
    mine, again = (train(spec, qkv, upward) for _ in range(2))
    why = [] if same_bits(mine, again) else ["a second run gives other bits, or there is a NaN"]
    if first_head:
        idx, upward = tuple(map(_first, idx)), (_first(upward[0]), _first(upward[1]))
        mine = Trained((_first(mine.results[0]), _first(mine.results[1])), tuple(map(_first, mine.gradients)))
        qkv = (_first(q), _first(k), _first(v))
    judged = (judge(spec, qkv, idx, mine.results), judge_gradients(spec, qkv, idx, upward, mine.gradients))
    why += [reason for verdict in judged for reason in verdict["why"]]
    return judged[0] | judged[1] | {"right": not why, "why": why}


def same_bits(one: Trained, other: Trained) -> bool:
    """Whether two runs agree bit by bit and hold no NaN."""
    return all(torch.equal(mine, theirs) for mine, theirs in zip(one.tensors, other.tensors, strict=True))


def judge(spec: Spec, qkv: Qkv, idx: Sequence[Tensor], result: Results) -> dict[str, Any]:
    """Judges lists, o and lse."""
    q, k, v = qkv
    why: list[str] = []
    _note(why, partial(reference.assert_same_selection, idx, q, k, spec))
    with torch.no_grad():
        exact, plain = reference.attend(q, k, v, idx, spec), reference.native(q, k, v, idx, spec)
    sizes = reference.rounding_magnitude(q, k, v, idx, spec)
    for label, found, true, near, size in zip(("o", "lse"), result, exact, plain, sizes, strict=True):
        _note(why, partial(reference.assert_close_by_rule, found, true, near, magnitude=size, label=label))
    error, ratio = _distances(result[0], exact[0], plain[0])
    return {"right": not why, "why": why, "o_error": error, "o_ratio": ratio}


Truth = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
"""The gradients of q, k and v in fp64, and those of plain torch in the dtype of q."""


def truth_of(spec: Spec, qkv: Qkv, idx: Sequence[Tensor], upward: Results) -> Truth:
    """What gradients are judged by, given the lists and the gradients of o and lse."""
    return gradients(spec, qkv, idx, upward, exact=True), gradients(spec, qkv, idx, upward, exact=False)


def judge_gradients(
    spec: Spec,
    qkv: Qkv,
    idx: Sequence[Tensor],
    upward: Results,
    found: Sequence[Tensor],
    truth: Truth | None = None,
    *,
    factor: float = reference.GRADIENT_FACTOR,
) -> dict[str, Any]:
    """Judges the gradients of q, k and v, given the lists and the gradients of o and lse.

    Who judges several times may give what comes of `truth_of`, which takes most of the time; `factor` is that of the
    error rule.

    The floor of the rule is that of the largest entry. A bound on all that was rounded on the way is larger than the
    gradients themselves in the half types, as they come of differences, and would judge nothing.
    """
    why: list[str] = []
    exact, plain = truth_of(spec, qkv, idx, upward) if truth is None else truth
    said: dict[str, Any] = {}
    for operand, mine, true, near in zip("qkv", found, exact, plain, strict=True):
        rule = partial(reference.assert_close_by_rule, mine, true, near, factor)
        _note(why, partial(rule, label=f"{operand}_grad"))
        error, ratio = _distances(mine, true, near)
        said |= {f"{operand}_grad_error": error, f"{operand}_grad_ratio": ratio}
    return {"right": not why, "why": why, **said}


@torch.enable_grad()
def gradients(spec: Spec, qkv: Qkv, idx: Sequence[Tensor], upward: Results, *, exact: bool) -> tuple[Tensor, ...]:
    """The gradients of the reference in fp64, or of plain torch in the dtype of q, for given lists."""
    dtype = qkv[0].dtype
    q, k, v = leaves((qkv[0].double(), qkv[1].double(), qkv[2].double()) if exact else qkv)
    compute_dtype, pool_dtype = (torch.float64, dtype) if exact else (dtype, None)
    results = reference.attend(q, k, v, idx, spec, compute_dtype=compute_dtype, pool_dtype=pool_dtype)
    reached = [gradient.to(result.dtype) for gradient, result in zip(upward, results, strict=True)]
    return torch.autograd.grad(results, (q, k, v), reached)


def _first(x: Tensor) -> Tensor:
    """The first head of the first batch entry."""
    return x[:1, :1]


def _distances(mine: Tensor, exact: Tensor, plain: Tensor) -> tuple[float | None, float | None]:
    """The largest distance to fp64, and as a multiple of plain torch's."""
    error, native = (float((x.double() - exact).abs().max()) for x in (mine, plain))
    return finite(error), finite(error / native) if native else None


def _note(why: list[str], check: Callable[[], None]) -> None:
    try:
        check()
    except AssertionError as error:
        why.append(str(error)[:600])
