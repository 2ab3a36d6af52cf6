# SPDX-License-Identifier: Apache-2.0
"""The pipeline: every step from a spec to the plan of its kernels, in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from llsa_gen.ir.types import Plan
from llsa_gen.ir.verify import verify
from llsa_gen.lowering.build import build
from llsa_gen.lowering.fuse_coarsen import fuse_coarsen
from llsa_gen.lowering.pack_pools import pack_pools
from llsa_gen.lowering.resolve_depth import resolve_depth
from llsa_gen.lowering.split_attend import split_attend

if TYPE_CHECKING:
    from llsa_gen.spec import Spec

PASSES: tuple[tuple[str, Callable[[Plan], Plan]], ...] = (
    ("fuse_coarsen", fuse_coarsen),
    ("pack_pools", pack_pools),
    ("split_attend", split_attend),
)
"""The rewrites between the mathematical plan and the final one; each keeps the meaning."""


def lower(spec: Spec) -> Plan:
    """The final plan of a spec.

    Raises:
        SpecError: ``levels="auto"`` and no depth is possible.
        InternalError: A pass broke a rule of the plan.
    """
    return trace(spec)[-1][1]


def trace(spec: Spec) -> tuple[tuple[str, Plan], ...]:
    """The plan after every step with the name of the step, the mathematical plan ``build`` first.

    Raises:
        SpecError: ``levels="auto"`` and no depth is possible.
        InternalError: A pass broke a rule of the plan.
    """
    plan = build(resolve_depth(spec))
    verify(plan)
    steps = [("build", plan)]
    for name, rewrite in PASSES:
        plan = rewrite(plan)
        verify(plan)
        steps.append((name, plan))
    return tuple(steps)
