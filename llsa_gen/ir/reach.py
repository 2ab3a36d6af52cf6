# SPDX-License-Identifier: Apache-2.0
"""Reach: the stages of a plan that some of its tensors need."""

from __future__ import annotations

from collections.abc import Collection

from llsa_gen.ir.types import Plan, Stage


def needed_stages(plan: Plan, wanted: Collection[str], given: Collection[str] = ()) -> tuple[Stage, ...]:
    """The stages without which the wanted tensors cannot be had, in order.

    Args:
        plan: Any plan.
        wanted: Names of tensors.
        given: Names of tensors that are there already, besides the inputs of the plan.
    """
    needed = set(wanted) - set(given)
    found: list[Stage] = []
    for stage in reversed(plan.stages):
        if needed & set(stage.outputs):
            found.append(stage)
            needed |= set(stage.inputs) - set(given)
    return tuple(reversed(found))
