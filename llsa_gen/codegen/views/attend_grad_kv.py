# SPDX-License-Identifier: Apache-2.0
"""What the templates of `attend_grad_kv` and `merge_grad_kv` see."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from llsa_gen.codegen.views.base import (
    DTYPE,
    FP32,
    INT32,
    KernelView,
    Parameter,
    View,
    attention_values,
    parameters,
    strides,
)
from llsa_gen.ir.sizes import part_entries, query_splits
from llsa_gen.ir.types import Plan, Stage
from llsa_gen.stages import AttendGradKV, GradKVStage


class Contiguous(NamedTuple):
    """A tensor inside a plan, which lies in memory as it is indexed: batch and head first."""

    name: str
    shape: tuple[str, ...]
    dtype: str


@dataclass(frozen=True)
class GradKVView(KernelView):
    """The values of a kernel that writes gradients of keys and values."""

    value_dim: int = 0
    value_tile: int = 0
    part: str = ""
    has_above: bool = False
    pieces: int = 0
    views: tuple[View, ...] = ()
    contiguous: tuple[Contiguous, ...] = ()


@dataclass(frozen=True)
class AttendGradKVView(GradKVView):
    """The values of a kernel that walks the queries of a tile of keys."""

    level: int = 0
    takers: dict[int, int] = field(default_factory=dict)
    topk: dict[int, int] = field(default_factory=dict)
    pull: dict[int, float] = field(default_factory=dict)
    refined: bool = False
    base: str = ""


def view(plan: Plan, stage: Stage) -> AttendGradKVView:
    """One kernel for the coarsest level, one for other pooled levels, one for the tokens."""
    grad = cast(AttendGradKV, stage)
    spec, levels = plan.spec, _levels(plan, grad)
    refined = spec.enrichment == "exclude_refined" and grad.level > 0
    return AttendGradKVView(
        **shared_values(plan, grad),
        summary=_SUMMARIES[grad.part],
        parameters=_parameters(grad, refined),
        level=grad.level,
        takers={level: part_entries(spec, level + 1) for level in levels if grad.part != "all"},
        topk={level: spec.topks[level - 1] for level in levels if refined},
        pull={level: math.log2(spec.level_weight(level, spec.block**level)) for level in levels if level},
        refined=refined,
        base="base + " if grad.level else "",
        views=_views(grad),
        contiguous=_contiguous(grad, refined),
    )


_SUMMARIES = {
    "all": "Gradients of the coarsest keys and values, which every query attends, by piece of the queries.",
    "lists": "Gradients of pooled keys and values over the queries that attended them.",
    "fine": "Gradients of the tokens' keys and values over the queries that attended them.",
}


def shared_values(plan: Plan, stage: GradKVStage) -> dict[str, Any]:
    """What every kernel that writes gradients of keys and values has in common."""
    spec = plan.spec
    return {
        **attention_values(spec, stage),
        "part": stage.part,
        "has_above": stage.has_above,
        "pieces": query_splits(spec),
    }


def gradient_views(stage: GradKVStage) -> tuple[View, ...]:
    """The gradients of the tokens, which lie as the caller wants."""
    if stage.level:
        return ()
    return (
        View("k_grad", ("batch", "places", "kv_heads", "HEAD_DIM"), DTYPE),
        View("v_grad", ("batch", "places", "kv_heads", "VALUE_DIM"), DTYPE),
    )


def by_node(name: str, rows: tuple[str, ...]) -> tuple[Contiguous, ...]:
    """An fp32 tensor of keys and one of values."""
    return tuple(
        Contiguous(f"{operand}_{name}", ("batch", "heads", *rows, extent), FP32)
        for operand, extent in (("k", "HEAD_DIM"), ("v", "VALUE_DIM"))
    )


def table(name: str, *rows: str) -> Contiguous:
    """An int32 table."""
    return Contiguous(name, ("batch", "heads", *rows), INT32)


def _levels(plan: Plan, stage: AttendGradKV) -> list[int]:
    """The levels that the kernels of one file serve."""
    kinds = (cast(AttendGradKV, each) for each in plan.of_kind(stage.kind))
    return sorted(each.level for each in kinds if each.part == stage.part)


def _views(stage: AttendGradKV) -> tuple[View, ...]:
    return (
        View("q", ("batch", "len_q", "heads", "HEAD_DIM"), DTYPE),
        View("k", ("batch", "places", "kv_heads", "HEAD_DIM"), DTYPE),
        View("v", ("batch", "places", "kv_heads", "VALUE_DIM"), DTYPE),
        View("o_grad", ("batch", "len_q", "heads", "VALUE_DIM"), DTYPE),
        *gradient_views(stage),
    )


def _contiguous(stage: AttendGradKV, refined: bool) -> tuple[Contiguous, ...]:
    by_query = (Contiguous(name, ("batch", "heads", "len_q"), FP32) for name in ("lse", "delta"))
    own = (table("idx", "nodes_q", "TOPK[level]"),) if refined else ()
    if stage.part == "all":
        return (*by_query, *own, *by_node("parts", ("PIECES", "nodes")))
    return (
        *by_query,
        table("offsets", "parents + 1"),
        table("takers", "listed"),
        table("part_offsets", "parents + 1"),
        table("part_nodes", "parts"),
        *own,
        *(by_node("above", ("parents",)) if stage.has_above else ()),
        *by_node("parts", ("parts", "BLOCK")),
        *(by_node("grad", ("nodes",)) if stage.level else ()),
    )


def _parameters(stage: AttendGradKV, refined: bool) -> tuple[Parameter, ...]:
    """The parameters, in order: pointers, sizes, strides, and what pooled keys need besides."""
    views = _views(stage)
    pointers = {view.name: view.dtype for view in views}
    pointers |= {each.name: each.dtype for each in _contiguous(stage, refined)}
    ints = (
        *("batch", "heads", "kv_heads", "len_q", "places", "nodes"),
        *(() if stage.part == "all" else ("parents", "parts", "listed")),
        *(("base",) if stage.level else ()),
        *(("tail_tokens",) if stage.part == "lists" else ()),
        *(("nodes_q",) if refined else ()),
    )
    floats = ("scale", "tail_pull") if stage.level else ("scale",)
    return parameters(pointers, (*ints, *strides(*(view.name for view in views))), floats)
