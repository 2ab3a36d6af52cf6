# SPDX-License-Identifier: Apache-2.0
"""What a template sees: one view per generated kernel file, all values decided, no logic left but structure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from llsa_gen.codegen.heading import heading
from llsa_gen.dtypes import get_dtype
from llsa_gen.ir.types import Plan, Stage
from llsa_gen.schedule.solve import padded
from llsa_gen.stages import Attend
from llsa_gen.stages.attend import list_levels


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel.

    Attributes:
        name: Its name in the kernel and in every call.
        type: ``handle`` (a pointer), ``int32`` or ``float32``.
    """

    name: str
    type: str


@dataclass(frozen=True)
class View:
    """A strided tensor of the caller: strides are parameters in units of eight elements, the last one is 1."""

    name: str
    shape: tuple[str, ...]
    dtype: str

    @property
    def strides(self) -> tuple[str, ...]:
        """The parameters that hold the strides of the batch, row and head axes."""
        return tuple(f"{self.name}_{axis}" for axis in ("sb", "sn", "sh"))


@dataclass(frozen=True)
class KernelView:
    """The values of one generated file."""

    name: str
    template: str
    heading: str
    summary: str
    parameters: tuple[Parameter, ...]
    block: int
    dtype: str
    head_dim: int = 0
    head_tile: int = 0


@dataclass(frozen=True)
class AttendView(KernelView):
    """The values of an attention kernel."""

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
    views: tuple[View, ...] = ()
    row_rule: str = ""

    @property
    def refined_gathered(self) -> list[int]:
        """Gathered levels whose nodes may be stood in for by their children."""
        return [level for level in self.gathered if level] if self.refined else []


def kernel_views(plan: Plan) -> tuple[KernelView, ...]:
    """One view per generated file of a plan, in the order of execution."""
    views: dict[str, KernelView] = {}
    for stage in plan.stages:
        view = _view(plan, stage)
        views.setdefault(view.name, view)
    return tuple(views.values())


def file_of(stage: Stage) -> str:
    """The name of the kernel file, and of the factory in it, that a stage runs."""
    return f"attend_{stage.part}" if isinstance(stage, Attend) else stage.kind


def _view(plan: Plan, stage: Stage) -> KernelView:
    if isinstance(stage, Attend):
        return _attend(plan, stage)
    return {"coarsen": _coarsen, "select": _select}[stage.kind](plan)


def _coarsen(plan: Plan) -> KernelView:
    ints = ("batch", "heads", "length", "tokens", "span", "first", "pool_rows", "x_sb", "x_sn", "x_sh")
    return KernelView(
        name="coarsen",
        template="coarsen",
        heading=heading(plan.spec, "coarsen"),
        summary="Means over one or several levels.",
        parameters=_parameters(("x", "pools", "sums"), ints),
        block=plan.spec.block,
        dtype=get_dtype(plan.spec.dtype).tilelang_name,
    )


def _select(plan: Plan) -> KernelView:
    ints = ("batch", "heads", "kv_heads", "nodes_q", "nodes_k", "q_rows", "k_rows", "first_q", "first_k")
    return KernelView(
        name="select",
        template="select",
        heading=heading(plan.spec, "select"),
        summary="The top-k key nodes of every query node.",
        parameters=_parameters(("q_pools", "k_pools", "parents", "idx"), ints),
        block=plan.spec.block,
        dtype=get_dtype(plan.spec.dtype).tilelang_name,
        head_dim=plan.spec.head_dim,
        head_tile=padded(plan.spec.head_dim),
    )


def _attend(plan: Plan, stage: Attend) -> AttendView:
    spec, fine = plan.spec, stage.part == "fine"
    dtype = get_dtype(spec.dtype).tilelang_name
    levels = tuple(segment.level for segment in stage.segments)
    lists = list_levels(stage.segments, spec.enrichment)
    dense = next((segment.level for segment in stage.segments if segment.keys == "all"), 0)
    out_dtype = dtype if stage.final else "float32"
    refined = spec.enrichment == "exclude_refined" and not fine
    return AttendView(
        name=file_of(stage),
        template="attend",
        heading=heading(plan.spec, "attend"),
        summary=_summary(stage),
        parameters=attend_parameters(stage, lists),
        block=spec.block,
        dtype=dtype,
        head_dim=spec.head_dim,
        head_tile=padded(spec.head_dim),
        value_dim=spec.dim_v,
        value_tile=padded(spec.dim_v),
        out_dtype=out_dtype,
        levels=levels,
        gathered=[segment.level for segment in stage.segments if segment.keys == "lists"],
        dense=dense,
        list_levels=lists,
        topk={level: spec.topks[level - 1] for level in lists},
        pull={level: _pull(plan, level) for level in levels},
        group={level: _group(spec.block, level) for level in levels if level} if refined else {},
        refined=refined,
        carry=stage.carry,
        views=_attend_views(),
        row_rule="there are BLOCK of them" if fine else _row_rule(spec.depth),
    )


def attend_parameters(stage: Attend, lists: tuple[int, ...]) -> tuple[Parameter, ...]:
    """The parameters of an attention kernel, in order."""
    carry = ("o_carry", "lse_carry") if stage.carry else ()
    pointers = ("q", "k", "v", *(f"idx_{level}" for level in lists), *carry, "o", "lse")
    pooled = sorted(segment.level for segment in stage.segments if segment.level)
    strides = tuple(f"{name}_{axis}" for name in ("q", "k", "v", "o") for axis in ("sb", "sn", "sh"))
    ints = (
        *("batch", "heads", "kv_heads", "len_q", "places"),
        *(f"nodes_q_{level}" for level in lists),
        *(f"nodes_k_{level}" for level in pooled),
        *(f"base_{level}" for level in pooled),
        *strides,
    )
    return _parameters(pointers, ints, ("scale", *(f"tail_pull_{level}" for level in pooled)))


def _parameters(
    pointers: tuple[str, ...], ints: tuple[str, ...], floats: tuple[str, ...] = ()
) -> tuple[Parameter, ...]:
    return (
        *(Parameter(name, "handle") for name in pointers),
        *(Parameter(name, "int32") for name in ints),
        *(Parameter(name, "float32") for name in floats),
    )


def _attend_views() -> tuple[View, ...]:
    stored, out = "on.stored(DTYPE)", "on.stored(OUT_DTYPE)"
    return (
        View("q", ("batch", "len_q", "heads", "HEAD_DIM"), stored),
        View("k", ("batch", "places", "kv_heads", "HEAD_DIM"), stored),
        View("v", ("batch", "places", "kv_heads", "VALUE_DIM"), stored),
        View("o", ("batch", "len_q", "heads", "VALUE_DIM"), out),
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
    if stage.part == "fine":
        return "Attention over the selected tokens" + (", continuing from the coarse levels." if stage.carry else ".")
    return "Attention over the pooled levels, which many queries share."
