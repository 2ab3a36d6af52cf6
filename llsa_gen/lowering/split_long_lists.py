# SPDX-License-Identifier: Apache-2.0
"""Split long lists: the gradients of a node that many queries attended come in parts, each for one block of threads.

One key block may be selected by every query; without parts one block of threads would walk them all while the others
are done. The parts are added in a fixed order, so the result is the same bit by bit on every run.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from llsa_gen.ir import names, tensors
from llsa_gen.ir.sizes import query_splits
from llsa_gen.ir.types import Plan, Stage, TensorType
from llsa_gen.stages import AttendGradKV, InvertIndex, MergeGradKV


def split_long_lists(plan: Plan) -> Plan:
    """Gives every gradient of keys and values its parts, and the stage that adds them up."""
    stages: list[Stage] = []
    added: list[TensorType] = []
    for stage in plan.stages:
        if isinstance(stage, InvertIndex):
            stages.append(_with_part_tables(stage))
            added += [tensors.part_offsets(stage.level), tensors.part_nodes(stage.level)]
        elif isinstance(stage, AttendGradKV):
            stages += _in_parts(stage)
            added += _parts(plan, stage)
        else:
            stages.append(stage)
    split = len(plan.tensors) - len(plan.outputs)
    return replace(plan, tensors=(*plan.tensors[:split], *added, *plan.tensors[split:]), stages=tuple(stages))


def _with_part_tables(stage: InvertIndex) -> InvertIndex:
    cut = replace(stage, in_parts=True)
    return replace(cut, outputs=cut.tables)


def _in_parts(stage: AttendGradKV) -> list[Stage]:
    """The stage with parts, and their end."""
    begun = replace(stage, in_parts=True)
    merge = MergeGradKV(
        name=f"merge_grad_kv_{stage.level}",
        inputs=(),
        outputs=stage.outputs,
        segment=stage.segment,
        has_above=stage.has_above,
        in_parts=True,
    )
    tables = tuple(piece.tensor for piece in begun.part_tables)
    parts = tuple(piece.tensor for piece in begun.parts)
    begun = replace(
        begun,
        inputs=(*stage.inputs, *tables),
        outputs=parts if begun.is_finished_later else (*stage.outputs, *parts),
    )
    unfinished = () if stage.segment.keys == "all" else stage.outputs
    inputs = (*parts, *tables, *(piece.tensor for piece in merge.above), *unfinished)
    return [begun, cast(Stage, replace(merge, inputs=inputs))]


def _parts(plan: Plan, stage: AttendGradKV) -> list[TensorType]:
    """Their partial sums: by piece of the queries and node, or by part and child."""
    if stage.segment.keys == "all":
        extents = (names.nodes(stage.level, "k"), str(query_splits(plan.spec)))
    else:
        extents = (f"P{stage.level + 1}", "b")
    return [tensors.parts(operand, stage.level, extents) for operand in ("k", "v")]
