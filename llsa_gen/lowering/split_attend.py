# SPDX-License-Identifier: Apache-2.0
"""Split attend: one launch for the pooled keys and one for the tokens, forward and for the gradient of q.

A list of level ``l`` is shared by ``b**(l + 1)`` queries or more when its keys are pooled, and the coarsest nodes by
all: full tiles of rows. The tokens of a list are shared by ``b`` queries only. Two launches let each have its tiles.
A joined plan keeps the one stage: where ``b`` queries fill a tile, what they have so far need not go through memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import cast

from llsa_gen.ir import names, tensors
from llsa_gen.ir.types import Plan, TensorType
from llsa_gen.stages import Attend, AttendGradQ, Segment, SegmentStage
from llsa_gen.stages.attend import list_levels


def split_attend(plan: Plan) -> Plan:
    """Replaces the walk over all keys by a coarse stage and a fine one that continues from it, but in joined plans."""
    if plan.joined:
        return plan
    (whole,) = (*plan.of_kind(Attend.kind), *plan.of_kind(AttendGradQ.kind))
    walk = cast(SegmentStage, whole)
    coarse = tuple(segment for segment in walk.segments if segment.level)
    fine = tuple(segment for segment in walk.segments if not segment.level)
    carry = _carry(walk) if coarse else ()
    carried = tuple(tensor.name for tensor in carry)
    last = _part(plan, walk, fine, read=carried, written=walk.outputs)
    parts = (_part(plan, walk, coarse, read=(), written=carried), last) if coarse else (last,)
    place, split = plan.stages.index(whole), len(plan.tensors) - len(plan.outputs)
    return replace(
        plan,
        tensors=(*plan.tensors[:split], *carry, *plan.tensors[split:]),
        stages=(*plan.stages[:place], *parts, *plan.stages[place + 1 :]),
    )


def _carry(walk: SegmentStage) -> tuple[TensorType, ...]:
    """What the coarse stage leaves to the fine one."""
    return tensors.carry() if walk.kind == Attend.kind else (tensors.q_grad_carry(),)


def _part(
    plan: Plan, walk: SegmentStage, segments: tuple[Segment, ...], *, read: tuple[str, ...], written: tuple[str, ...]
) -> SegmentStage:
    """The same stage over some of its segments, with the inputs that they need: rows, lists, carry."""
    rows = _keys_and_values(plan, segments)
    lists = (names.lists(level) for level in list_levels(segments, plan.spec.enrichment))
    shared = [name for name in walk.inputs if name in ("q", "o_grad", "lse", names.DELTA)]
    return replace(
        walk,
        name=f"{walk.name}_{'coarse' if segments[0].level else 'fine'}",
        inputs=(*shared, *rows, *lists, *read),
        outputs=written,
        segments=segments,
        carry=bool(read),
        final=written == walk.outputs,
    )


def _keys_and_values(plan: Plan, segments: Iterable[Segment]) -> tuple[str, ...]:
    declared = [tensor.name for tensor in plan.tensors]
    levels = sorted({segment.level for segment in segments})
    found = (names.rows_of(declared, operand, level) for operand in ("k", "v") for level in levels)
    return tuple(dict.fromkeys(found))
