# SPDX-License-Identifier: Apache-2.0
"""What a template sees: one view per generated kernel file, all values decided, no logic left but structure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from llsa_gen.codegen.views import (
    attend,
    attend_grad_kv,
    attend_grad_q,
    coarsen,
    delta,
    invert_index,
    merge_grad_kv,
    select,
)
from llsa_gen.codegen.views.base import KernelView, Parameter, View
from llsa_gen.ir.types import Plan, Stage

VIEWS: dict[str, Callable[[Plan, Stage], KernelView]] = {
    "coarsen": coarsen.view,
    "select": select.view,
    "attend": attend.view,
    "delta": delta.view,
    "invert_index": invert_index.view,
    "attend_grad_q": attend_grad_q.view,
    "attend_grad_kv": attend_grad_kv.view,
    "merge_grad_kv": merge_grad_kv.view,
}
"""The view of every kind of stage."""


def kernel_views(plans: Iterable[Plan]) -> tuple[KernelView, ...]:
    """One view per generated file of some plans, in the order of execution."""
    views: dict[str, KernelView] = {}
    for plan in plans:
        for stage in plan.stages:
            if stage.factory not in views:
                views[stage.factory] = VIEWS[stage.kind](plan, stage)
    return tuple(views.values())


__all__ = ["VIEWS", "KernelView", "Parameter", "View", "kernel_views"]
