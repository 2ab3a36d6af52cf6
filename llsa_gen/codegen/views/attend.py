# SPDX-License-Identifier: Apache-2.0
"""What the template of `attend` sees, and what every kernel over segments of keys has in common."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, cast

from llsa_gen.codegen.views.base import (
    DTYPE,
    FP32,
    INT32,
    OUT_DTYPE,
    KernelView,
    Parameter,
    View,
    attention_values,
    parameters,
    strides,
)
from llsa_gen.dtypes import get_dtype
from llsa_gen.ir.types import Plan, Stage
from llsa_gen.stages import Attend, SegmentStage
from llsa_gen.stages.attend import list_levels


@dataclass(frozen=True)
class SegmentsView(KernelView):
    """The values of a kernel that walks the keys of some segments."""

    value_dim: int = 0
    value_tile: int = 0
    out_dtype: str = ""
    levels: tuple[int, ...] = ()
    gathered: list[int] = field(default_factory=list)
    dense: int = 0
    list_levels: tuple[int, ...] = ()
    topk: dict[int, int] = field(default_factory=dict)
    pull: dict[int, float] = field(default_factory=dict)
    group: dict[int, str] = field(default_factory=dict)
    refined: bool = False
    carry: bool = False
    part: str = ""
    views: tuple[View, ...] = ()
    row_rule: str = ""

    @property
    def pooled_gathered(self) -> list[int]:
        """Gathered levels of pooled nodes."""
        return [level for level in self.gathered if level]

    @property
    def refined_gathered(self) -> list[int]:
        """Gathered levels whose nodes may be stood in for by their children."""
        return self.pooled_gathered if self.refined else []


def view(plan: Plan, stage: Stage) -> SegmentsView:
    """One kernel for the pooled keys and one for the tokens, or one for both."""
    attend = cast(Attend, stage)
    return SegmentsView(
        **segment_values(plan, attend),
        summary=_summary(attend),
        parameters=attend_parameters(plan, attend),
        out_dtype=get_dtype(plan.spec.dtype).tilelang_name if attend.final else "float32",
        views=_views(),
    )


def segment_values(plan: Plan, stage: SegmentStage) -> dict[str, Any]:
    """What follows from the segments of a stage alone."""
    spec, pooled_alone = plan.spec, stage.part == "coarse"
    levels = tuple(segment.level for segment in stage.segments)
    lists = list_levels(stage.segments, spec.enrichment)
    refined = spec.enrichment == "exclude_refined" and stage.part != "fine"
    return {
        **attention_values(spec, stage),
        "levels": levels,
        "gathered": [segment.level for segment in stage.segments if segment.keys == "lists"],
        "dense": next((segment.level for segment in stage.segments if segment.keys == "all"), 0),
        "list_levels": lists,
        "topk": {level: spec.topks[level - 1] for level in lists},
        "pull": {level: _pull(plan, level) for level in levels},
        "group": {level: _group(spec.block, level) for level in levels if level} if refined else {},
        "refined": refined,
        "carry": stage.carry,
        "part": stage.part,
        "row_rule": _row_rule(spec.depth) if pooled_alone else "it divides BLOCK",
    }


def attend_parameters(plan: Plan, stage: Attend) -> tuple[Parameter, ...]:
    """The parameters of an attention kernel, in order."""
    lists = list_levels(stage.segments, plan.spec.enrichment)
    pointers = {
        **dict.fromkeys(("q", "k", "v", *stage.pools_beside), DTYPE),
        **{f"idx_{level}": INT32 for level in lists},
        **dict.fromkeys(("o_carry", "lse_carry") if stage.carry else (), FP32),
        "o": OUT_DTYPE,
        "lse": FP32,
    }
    ints, floats = segment_numbers(stage, lists)
    return parameters(pointers, (*ints, *strides("q", "k", "v", "o")), floats)


def segment_numbers(stage: SegmentStage, lists: tuple[int, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The int32 and float32 parameters that say how long a sequence and where each level is."""
    pooled = sorted(segment.level for segment in stage.segments if segment.level)
    ints = (
        *("batch", "heads", "kv_heads", "len_q", "places"),
        *(("pool_places",) if stage.part == "whole" else ()),
        *(f"nodes_q_{level}" for level in lists),
        *(f"nodes_k_{level}" for level in pooled),
        *(f"base_{level}" for level in pooled),
    )
    return ints, ("scale", *(f"tail_pull_{level}" for level in pooled))


def _views() -> tuple[View, ...]:
    return (
        View("q", ("batch", "len_q", "heads", "HEAD_DIM"), DTYPE),
        View("k", ("batch", "places", "kv_heads", "HEAD_DIM"), DTYPE),
        View("v", ("batch", "places", "kv_heads", "VALUE_DIM"), DTYPE),
        View("o", ("batch", "len_q", "heads", "VALUE_DIM"), OUT_DTYPE),
    )


def _pull(plan: Plan, level: int) -> float:
    """log2 of the weight of a complete node; tokens weigh 1."""
    spec = plan.spec
    return math.log2(spec.level_weight(level, spec.block**level)) if level else 0.0


def _group(block: int, level: int) -> str:
    """Which row of a tile's part of a level's lists query i of the tile uses."""
    return f"T.min(i // {block**level}, groups[{level}] - 1)"


def _row_rule(depth: int) -> str:
    return "any number will do" if depth == 1 else "at most BLOCK**2, and it divides that"


def _summary(stage: Attend) -> str:
    if stage.part == "whole":
        return "Attention over the pooled levels and the selected tokens."
    if stage.part == "fine":
        return "Attention over the selected tokens" + (", continuing from the coarse levels." if stage.carry else ".")
    return "Attention over the pooled levels, which many queries share."
