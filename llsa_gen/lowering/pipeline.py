# SPDX-License-Identifier: Apache-2.0
"""The pipeline: every step from a spec to the plan of its kernels, in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from llsa_gen.ir.types import Direction, Plan
from llsa_gen.ir.verify import verify
from llsa_gen.lowering.build import build
from llsa_gen.lowering.build_backward import build_backward
from llsa_gen.lowering.fuse_coarsen import fuse_coarsen
from llsa_gen.lowering.pack_pools import pack_pools
from llsa_gen.lowering.resolve_depth import resolve_depth
from llsa_gen.lowering.split_attend import split_attend
from llsa_gen.lowering.split_invert_index import split_invert_index
from llsa_gen.lowering.split_long_lists import split_long_lists

if TYPE_CHECKING:
    from llsa_gen.spec import Spec

PASSES: tuple[tuple[str, Callable[[Plan], Plan]], ...] = (
    ("fuse_coarsen", fuse_coarsen),
    ("pack_pools", pack_pools),
    ("split_attend", split_attend),
    ("split_long_lists", split_long_lists),
    ("split_invert_index", split_invert_index),
)
"""The rewrites between the mathematical plan and the final one; each keeps the meaning."""

DIRECTIONS: tuple[Direction, ...] = ("forward", "backward")
"""The directions of the plans of a spec, in the order in which they run."""

BUILD: dict[Direction, Callable[[Spec], Plan]] = {"forward": build, "backward": build_backward}
"""What makes the mathematical plan of each direction."""


def lower(spec: Spec, direction: Direction = "forward", short: tuple[int, ...] = (), *, joined: bool = False) -> Plan:
    """The final plan of a spec, of attention or of its gradients.

    Args:
        spec: What is computed.
        direction: Which plan.
        short: Levels with lists that are inverted in one launch; `llsa_gen.ir.sizes.short_lists` has those of a length.
        joined: Whether attention stays one stage; `llsa_gen.schedule.joins` says for which targets it does.

    Raises:
        SpecError: ``levels="auto"`` and no depth is possible.
        InternalError: A pass broke a rule of the plan.
    """
    return trace(spec, direction, short, joined=joined)[-1][1]


def directions_of(spec: Spec) -> tuple[Direction, ...]:
    """Those of a spec: without the backward one where gradients are left out."""
    return DIRECTIONS if spec.gradient else DIRECTIONS[:1]


def plans_of(spec: Spec, *, joined: bool = False) -> tuple[Plan, ...]:
    """The final plans of everything that a spec asks for: attention, and its gradients unless they are left out."""
    return tuple(lower(spec, direction, joined=joined) for direction in directions_of(spec))


def variants_of(plan: Plan) -> tuple[Plan, ...]:
    """The plan where all lists are long, then the one where all are short: together the kernels of every length.

    A plan that inverts no lists is alone.
    """
    if not plan.of_kind("invert_index"):
        return (plan,)
    forms = (), tuple(range(1, plan.spec.depth + 1))
    return tuple(
        plan if short == plan.short else lower(plan.spec, plan.direction, short, joined=plan.joined) for short in forms
    )


def trace(
    spec: Spec, direction: Direction = "forward", short: tuple[int, ...] = (), *, joined: bool = False
) -> tuple[tuple[str, Plan], ...]:
    """The plan after every step with the name of the step, the mathematical plan ``build`` first; as `lower`.

    Raises:
        SpecError: ``levels="auto"`` and no depth is possible.
        InternalError: A pass broke a rule of the plan.
    """
    plan = replace(BUILD[direction](resolve_depth(spec)), short=short, joined=joined)
    verify(plan)
    steps = [("build", plan)]
    for name, rewrite in PASSES:
        plan = rewrite(plan)
        verify(plan)
        steps.append((name, plan))
    return tuple(steps)
