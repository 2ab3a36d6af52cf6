# SPDX-License-Identifier: Apache-2.0
"""Build: the mathematical plan of a spec, one stage per definition and no thought of speed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from llsa_gen.ir import names, tensors
from llsa_gen.ir.types import Plan, TensorType
from llsa_gen.stages import Attend, Coarsen, Segment, Select
from llsa_gen.stages.attend import list_levels

if TYPE_CHECKING:
    from llsa_gen.spec import Spec

Operand = Literal["q", "k", "v"]


def build(spec: Spec) -> Plan:
    """One pool per operand and level straight from the tokens, one selection per level, one attention over all keys."""
    levels = range(1, spec.depth + 1)
    pooled = [(operand, level) for operand in pooled_operands(spec) for level in levels]
    inner: list[TensorType] = [tensors.pool(operand, level, spec.dtype) for operand, level in pooled]
    inner += [tensors.lists(level) for level in reversed(levels)]
    return Plan(
        spec=spec,
        tensors=(
            *(tensors.operand_rows(operand, spec.dtype) for operand in names.OPERANDS),
            *inner,
            *tensors.results(spec.dtype),
        ),
        stages=(
            *(_coarsen(operand, level) for operand, level in pooled),
            *(_select(level, spec.depth) for level in reversed(levels)),
            _attend(spec),
        ),
        inputs=names.OPERANDS,
        outputs=names.RESULTS,
    )


def pooled_operands(spec: Spec) -> tuple[Operand, ...]:
    """The operands with a pyramid: without enrichment nobody reads pooled values."""
    return ("q", "k") if spec.enrichment == "none" else ("q", "k", "v")


def segments_of(spec: Spec) -> tuple[Segment, ...]:
    """The keys that a query attends, coarse to fine."""
    fine = Segment(0, "lists")
    if spec.enrichment == "none":
        return (fine,)
    refined = (Segment(level, "lists") for level in range(spec.depth - 1, 0, -1))
    return (Segment(spec.depth, "all"), *refined, fine)


def _coarsen(operand: Operand, level: int) -> Coarsen:
    return Coarsen(
        name=f"coarsen_{operand}_{level}",
        inputs=(operand,),
        outputs=(names.pool(operand, level),),
        operand=operand,
        source_level=0,
        levels=(level,),
    )


def _select(level: int, depth: int) -> Select:
    is_top = level == depth
    pools = (names.pool("q", level), names.pool("k", level))
    return Select(
        name=f"select_{level}",
        inputs=pools if is_top else (*pools, names.lists(level + 1)),
        outputs=(names.lists(level),),
        level=level,
        candidates="all" if is_top else "children",
    )


def _attend(spec: Spec) -> Attend:
    segments = segments_of(spec)
    return Attend("attend", attend_inputs(spec, segments), names.RESULTS, segments=segments, carry=False, final=True)


def attend_inputs(spec: Spec, segments: Iterable[Segment]) -> tuple[str, ...]:
    """What attention over some segments reads: operands, pools and lists."""
    given = tuple(segments)
    coarse = sorted(segment.level for segment in given if segment.level)
    pools = (names.pool(operand, level) for operand in ("k", "v") for level in coarse)
    lists = (names.lists(level) for level in list_levels(given, spec.enrichment))
    return (*names.OPERANDS, *pools, *lists)
