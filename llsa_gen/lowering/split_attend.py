# SPDX-License-Identifier: Apache-2.0
"""Split attend: one launch for the pooled keys and one for the tokens.

A list of level ``l`` is shared by ``b**(l + 1)`` queries or more when its keys are pooled, and the coarsest nodes by
all: full tiles of rows. The tokens of a list are shared by ``b`` queries only. Two launches let each have its tiles.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import cast

from llsa_gen.ir import names, tensors
from llsa_gen.ir.types import Plan
from llsa_gen.stages import Attend, Segment
from llsa_gen.stages.attend import list_levels


def split_attend(plan: Plan) -> Plan:
    """Replaces the attention over all keys by a coarse stage and a fine one that continues from it."""
    (whole,) = plan.of_kind(Attend.kind)
    attend = cast(Attend, whole)
    coarse = tuple(segment for segment in attend.segments if segment.level)
    fine = tuple(segment for segment in attend.segments if not segment.level)
    others = tuple(stage for stage in plan.stages if stage is not whole)
    last = _part(plan, "attend_fine", fine, carry=bool(coarse), final=True)
    if not coarse:
        return replace(plan, stages=(*others, last))
    first = _part(plan, "attend_coarse", coarse, carry=False, final=False)
    split = len(plan.tensors) - len(plan.outputs)
    return replace(
        plan,
        tensors=(*plan.tensors[:split], *tensors.carry(), *plan.tensors[split:]),
        stages=(*others, first, last),
    )


def _part(plan: Plan, name: str, segments: tuple[Segment, ...], *, carry: bool, final: bool) -> Attend:
    """A stage over some segments, with the inputs that they need: q, keys, values, lists, carry."""
    rows = _keys_and_values(plan, segments)
    lists = (names.lists(level) for level in list_levels(segments, plan.spec.enrichment))
    inputs = ("q", *rows, *lists, *(names.CARRY if carry else ()))
    return Attend(name, inputs, names.RESULTS if final else names.CARRY, segments, carry, final)


def _keys_and_values(plan: Plan, segments: Iterable[Segment]) -> tuple[str, ...]:
    declared = [tensor.name for tensor in plan.tensors]
    levels = sorted({segment.level for segment in segments})
    found = (names.rows_of(declared, operand, level) for operand in ("k", "v") for level in levels)
    return tuple(dict.fromkeys(found))
