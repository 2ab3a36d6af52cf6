# SPDX-License-Identifier: Apache-2.0
"""Build backward: the mathematical plan of the gradients of a spec, one stage per definition.

The pools and the lists are computed again rather than kept: they cost little, are the same bit by bit, and what is kept
of a forward pass is then q, k, v, o and the log-sum-exps, as with any attention.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llsa_gen.ir import names, tensors
from llsa_gen.ir.types import Plan, TensorType
from llsa_gen.lowering.build import attend_inputs, build, segments_of
from llsa_gen.stages import Attend, AttendGradKV, AttendGradQ, Delta, InvertIndex, Segment

if TYPE_CHECKING:
    from llsa_gen.spec import Spec


def build_backward(spec: Spec) -> Plan:
    """The stages of the forward pass before attention, then delta, inversions, and gradients from coarse to fine."""
    forward = build(spec)
    segments = segments_of(spec)
    inverted = [segment.level + 1 for segment in segments if segment.keys == "lists"]
    own = [tensor for tensor in forward.tensors if tensor.role == "temporary"]
    return Plan(
        spec=spec,
        tensors=(
            *(tensors.operand_rows(operand, spec.dtype) for operand in names.OPERANDS),
            *tensors.output_and_gradients(spec.dtype),
            *own,
            tensors.delta(),
            *(table for level in inverted for table in (tensors.offsets(level), tensors.inverted(level))),
            *_gradients(spec, segments),
        ),
        stages=(
            *(stage for stage in forward.stages if stage.kind != Attend.kind),
            Delta("delta", ("o", "o_grad", "lse_grad"), (names.DELTA,)),
            *(_invert(level) for level in inverted),
            _grad_q(spec, segments),
            *(_grad_kv(spec, segment, has_above=place > 0) for place, segment in enumerate(segments)),
        ),
        inputs=names.GIVEN,
        outputs=names.GRADIENTS,
        direction="backward",
    )


def _gradients(spec: Spec, segments: tuple[Segment, ...]) -> list[TensorType]:
    """The gradients of the pools, coarse to fine, then those that are returned."""
    levels = [segment.level for segment in segments if segment.level]
    pooled = [tensors.gradient(operand, level, spec.dtype) for level in levels for operand in ("k", "v")]
    return [*pooled, *(tensors.gradient(operand, 0, spec.dtype) for operand in names.OPERANDS)]


def _invert(level: int) -> InvertIndex:
    tables = (names.offsets(level), names.rows(level))
    return InvertIndex(f"invert_index_{level}", (names.lists(level),), tables, level=level)


def _grad_q(spec: Spec, segments: tuple[Segment, ...]) -> AttendGradQ:
    shared = ("o_grad", "lse", names.DELTA)
    inputs = dict.fromkeys((*attend_inputs(spec, segments), *shared))
    outputs = (names.gradient("q", 0),)
    return AttendGradQ("attend_grad_q", tuple(inputs), outputs, segments=segments, carry=False, final=True)


def _grad_kv(spec: Spec, segment: Segment, *, has_above: bool) -> AttendGradKV:
    level, up = segment.level, segment.level + 1
    rows = [names.pool(operand, level) if level else operand for operand in ("k", "v")]
    tables = () if segment.keys == "all" else (names.offsets(up), names.rows(up))
    own = (names.lists(level),) if spec.enrichment == "exclude_refined" and level else ()
    above = [names.gradient(operand, up) for operand in ("k", "v")] if has_above else []
    return AttendGradKV(
        name=f"attend_grad_kv_{level}",
        inputs=("q", *rows, "o_grad", "lse", names.DELTA, *tables, *own, *above),
        outputs=tuple(names.gradient(operand, level) for operand in ("k", "v")),
        segment=segment,
        has_above=has_above,
        in_parts=False,
    )
