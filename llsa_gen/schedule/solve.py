# SPDX-License-Identifier: Apache-2.0
"""Solving a schedule: of all tilings that fit the target, the one that keeps most busy."""

from __future__ import annotations

from collections.abc import Iterator

from llsa_gen.errors import InfeasibleError, explain
from llsa_gen.ir.types import KernelKey
from llsa_gen.schedule.tilings import TILINGS, Tiling
from llsa_gen.schedule.types import Schedule
from llsa_gen.spec import Spec
from llsa_gen.targets import Target

REGISTER_SHARE = {"wgmma": 0.6, "mma": 0.4}
"""Part of a thread's registers that the fragments counted here may take. Addresses and temporaries need the rest, and
without warp-group products so do operands, which then pass through registers. Read off ptxas: with 0.6 on sm_80 and
sm_100a the coarse attention kernel stood at 255 registers and began to spill; with these shares nothing spills."""


def solve(kernel: KernelKey, spec: Spec, target: Target) -> Schedule:
    """The best schedule of a kernel for a target.

    Raises:
        InfeasibleError: No tiling fits; names the limit that binds the smallest one.
    """
    tiling = tiling_of(kernel, spec)
    candidates = tuple(tiling.space(target))
    fitting = [schedule for schedule in candidates if _excess(tiling, target, schedule) is None]
    if fitting:
        return max(fitting, key=tiling.rank)
    smallest = min(candidates, key=tiling.shared_bytes)
    limit, value, bound = _excess(tiling, target, smallest) or ("tiling", 0, 0)
    what = f"no schedule of the kernel {kernel.label} fits {target.name}: {limit} binds"
    hint = "lower head_dim, value_dim, topk or block, or build for another target"
    raise InfeasibleError(
        explain(what, where=spec.slug, value=value, allowed=f"at most {bound}", hint=hint),
        limit=limit,
        value=value,
        bound=bound,
    )


def space(kernel: KernelKey, spec: Spec, target: Target) -> Iterator[Schedule]:
    """Every schedule worth trying for a kernel on a target, whether it fits or not."""
    return tiling_of(kernel, spec).space(target)


def fits(kernel: KernelKey, spec: Spec, target: Target, schedule: Schedule) -> bool:
    """Whether a schedule keeps the limits of a target."""
    return _excess(tiling_of(kernel, spec), target, schedule) is None


def tiling_of(kernel: KernelKey, spec: Spec) -> Tiling:
    """The tilings of a kernel."""
    return TILINGS[kernel.kind](kernel, spec)


def _excess(tiling: Tiling, target: Target, schedule: Schedule) -> tuple[str, float, float] | None:
    """The limit that a schedule breaks with its value and bound, or None."""
    if not target.is_cuda:
        return None
    shared = tiling.shared_bytes(schedule)
    if shared > target.shared_per_block:
        return "shared memory per block (bytes)", shared, target.shared_per_block
    registers = tiling.fragment_cells(schedule) / schedule.threads
    bound = _register_share(target) * target.registers_per_thread
    if registers > bound:
        return "registers per thread held by fragments", registers, bound
    return None


def _register_share(target: Target) -> float:
    """On sm_100 TileLang emits mma.sync, not tcgen05, so it counts as a machine without warp-group products."""
    return REGISTER_SHARE["wgmma" if target.has("wgmma") else "mma"]
