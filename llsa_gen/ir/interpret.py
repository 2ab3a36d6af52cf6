# SPDX-License-Identifier: Apache-2.0
"""Interpret: the meaning of a plan, computed slowly on the CPU, one function per kind of stage.

It runs the plan after every lowering pass, so that a pass can be shown to keep the meaning. Nothing is shared with
the reference: the two are written separately and compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from llsa_gen.errors import InputError, UnsupportedError, explain
from llsa_gen.ir import names
from llsa_gen.ir.meanings import MEANINGS
from llsa_gen.ir.meanings.state import State
from llsa_gen.ir.sizes import IntSizes
from llsa_gen.ir.types import Plan


def interpret(
    plan: Plan,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    *,
    compute_dtype: torch.dtype = torch.float32,
    given: Mapping[str, Tensor] | None = None,
    results: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Runs a plan.

    Sums are in fp32 (fp64 for fp64 operands) and means are rounded to the dtype of their operand, as they are stored.
    Everything else is in ``compute_dtype`` and stays in it, o and lse too: results of two plans compare closely.

    Args:
        plan: A verified plan, lowered or not.
        q: ``[B, H, Nq, D]``.
        k: ``[B, H, Nk, D]``.
        v: ``[B, H, Nk, Dv]``.
        scale: Factor of the logits, ``1 / sqrt(D)`` without it.
        compute_dtype: Dtype of all arithmetic.
        given: Lists by name (``idx1``..), int32 ``[B, H, n_l, K]`` with any K; their selections are not run.
        results: For a plan of gradients its other inputs: ``o``, ``lse``, ``o_grad`` and ``lse_grad``.

    Returns:
        Every tensor of the plan that was produced, by name.

    Raises:
        InputError: A tensor has a shape that does not fit the plan, or a given list does not belong to it.
        UnsupportedError: k and v have other heads than q.
    """
    given = dict(given or {})
    _check(plan, q, k, v, given)
    sizes = IntSizes(plan.spec, q.shape[2], k.shape[2], q.shape[0], q.shape[1], k.shape[1])
    scale = 1.0 / math.sqrt(plan.spec.head_dim) if scale is None else scale
    values = {"q": q, "k": k, "v": v, **(results or {}), **{name: lists.long() for name, lists in given.items()}}
    state = State(plan, sizes, scale, compute_dtype, values)
    for stage in plan.stages:
        if not given.keys() >= set(stage.outputs):
            MEANINGS[stage.kind](stage, state)
    return {name: value if value.is_floating_point() else value.int() for name, value in state.values.items()}


def _check(plan: Plan, q: Tensor, k: Tensor, v: Tensor, given: Mapping[str, Tensor]) -> None:
    if q.dim() == k.dim() == v.dim() == 4 and k.shape[1] != q.shape[1]:
        raise UnsupportedError(explain("grouped heads are not supported", where="k", value=tuple(k.shape)))
    spec = plan.spec
    batch, heads, keys = (*q.shape[:2], k.shape[2]) if q.dim() == k.dim() == 4 else (0, 0, 0)
    right = {"q": (*q.shape[:3], spec.head_dim), "k": (batch, heads, keys, spec.head_dim)}
    right["v"] = (batch, heads, keys, spec.dim_v)
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tuple(tensor.shape) != right[name] or tensor.numel() == 0:
            what, allowed = "a tensor does not fit the plan", f"{right[name]} without empty axes"
            raise InputError(explain(what, where=name, value=tuple(tensor.shape), allowed=allowed))
    known = [names.lists(level) for level in range(1, spec.depth + 1)]
    for name in given:
        if name not in known:
            raise InputError(explain("the plan has no such list", where="given", value=name, allowed=known))
