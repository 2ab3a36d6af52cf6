# SPDX-License-Identifier: Apache-2.0
"""What the template of `merge_grad_kv` sees."""

from __future__ import annotations

from typing import cast

from llsa_gen.codegen.views.attend_grad_kv import Contiguous, GradKVView, by_node, gradient_views, shared_values, table
from llsa_gen.codegen.views.base import Parameter, parameters, strides
from llsa_gen.ir.types import Plan, Stage
from llsa_gen.stages import MergeGradKV


def view(plan: Plan, stage: Stage) -> GradKVView:
    """One kernel for the coarsest level, one for other pooled levels, one for the tokens."""
    merge = cast(MergeGradKV, stage)
    return GradKVView(
        **shared_values(plan, merge),
        summary=_SUMMARIES[merge.part],
        parameters=_parameters(merge),
        views=gradient_views(merge),
        contiguous=_contiguous(merge),
    )


_SUMMARIES = {
    "all": "Gradients of the coarsest keys and values from those by piece of the queries.",
    "lists": "Gradients of pooled keys and values whose queries came in parts.",
    "fine": "Gradients of the tokens' keys and values whose queries came in parts.",
}


def _contiguous(stage: MergeGradKV) -> tuple[Contiguous, ...]:
    if stage.part == "all":
        return (*by_node("parts", ("PIECES", "nodes")), *by_node("grad", ("nodes",)))
    return (
        *by_node("parts", ("parts", "BLOCK")),
        table("part_offsets", "parents + 1"),
        table("part_nodes", "parts"),
        *(by_node("above", ("parents",)) if stage.has_above else ()),
        *(by_node("grad", ("nodes",)) if stage.level else ()),
    )


def _parameters(stage: MergeGradKV) -> tuple[Parameter, ...]:
    views = gradient_views(stage)
    pointers = {view.name: view.dtype for view in views}
    pointers |= {each.name: each.dtype for each in _contiguous(stage)}
    ints = (
        *("batch", "heads", "nodes"),
        *(() if stage.part == "all" else ("parents", "parts")),
        *(("span", "tail_tokens") if stage.level else ("kv_heads", "places")),
    )
    return parameters(pointers, (*ints, *strides(*(view.name for view in views))))
