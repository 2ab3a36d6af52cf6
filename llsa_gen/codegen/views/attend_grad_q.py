# SPDX-License-Identifier: Apache-2.0
"""What the template of `attend_grad_q` sees."""

from __future__ import annotations

from typing import cast

from llsa_gen.codegen.views.attend import SegmentsView, segment_numbers, segment_values
from llsa_gen.codegen.views.base import DTYPE, FP32, INT32, OUT_DTYPE, Parameter, View, parameters, strides
from llsa_gen.dtypes import get_dtype
from llsa_gen.ir.types import Plan, Stage
from llsa_gen.stages import AttendGradQ
from llsa_gen.stages.attend import list_levels


def view(plan: Plan, stage: Stage) -> SegmentsView:
    """One kernel for the pooled keys and one for the tokens, or one for both."""
    grad = cast(AttendGradQ, stage)
    return SegmentsView(
        **segment_values(plan, grad),
        summary=_summary(grad),
        parameters=_parameters(plan, grad),
        out_dtype=get_dtype(plan.spec.dtype).tilelang_name if grad.final else "float32",
        views=_views(),
    )


def _parameters(plan: Plan, stage: AttendGradQ) -> tuple[Parameter, ...]:
    lists = list_levels(stage.segments, plan.spec.enrichment)
    pointers = {
        **dict.fromkeys(("q", "k", "v", *stage.pools_beside, "o_grad"), DTYPE),
        **dict.fromkeys(("lse", "delta"), FP32),
        **{f"idx_{level}": INT32 for level in lists},
        **({"q_grad_carry": FP32} if stage.carry else {}),
        "q_grad": OUT_DTYPE,
    }
    ints, floats = segment_numbers(stage, lists)
    return parameters(pointers, (*ints, *strides("q", "k", "v", "o_grad", "q_grad")), floats)


def _views() -> tuple[View, ...]:
    return (
        View("q", ("batch", "len_q", "heads", "HEAD_DIM"), DTYPE),
        View("k", ("batch", "places", "kv_heads", "HEAD_DIM"), DTYPE),
        View("v", ("batch", "places", "kv_heads", "VALUE_DIM"), DTYPE),
        View("o_grad", ("batch", "len_q", "heads", "VALUE_DIM"), DTYPE),
        View("q_grad", ("batch", "len_q", "heads", "HEAD_DIM"), OUT_DTYPE),
    )


def _summary(stage: AttendGradQ) -> str:
    if stage.part == "whole":
        return "The gradient of q over the pooled levels and the selected tokens."
    if stage.part == "fine":
        return "The gradient of q over the selected tokens" + (", added to the coarse levels'." if stage.carry else ".")
    return "The gradient of q over the pooled levels, which many queries share."
