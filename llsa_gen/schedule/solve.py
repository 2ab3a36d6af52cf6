# SPDX-License-Identifier: Apache-2.0
"""Solving a schedule: of all tilings that fit the target, the one that keeps most busy."""

from __future__ import annotations

from collections.abc import Iterator

from llsa_gen.errors import InfeasibleError, explain
from llsa_gen.ir.types import KernelKey
from llsa_gen.schedule import lanes
from llsa_gen.schedule.limits import COPY_BYTES
from llsa_gen.schedule.tilings import TILINGS, Tiling
from llsa_gen.schedule.types import Schedule
from llsa_gen.spec import Spec
from llsa_gen.targets import Language, Target

REGISTER_SHARE = {"wgmma": 0.63, "mma": 0.5}
"""Part of a thread's registers that what is counted here may take; temporaries need the rest. Read off ptxas: with warp
groups kernels at 160 of 255 stand at up to 254 without a spill; without them those at 120 take up to 236, and of those
at 136 (head dim 128) or 160 (head dim 256) on sm_80 several spilled."""
ADDRESS_REGISTERS = 2
"""Registers of the address of a copy; a thread computes those of a step before its first copy."""
RAGGED_REGISTERS = 16
"""Registers of further addresses where rows of tiles are no whole `SWIZZLE_BYTES`. Head dims 48 and 80 take 30 to 50
more than 64 does in the same tile, and spilled on sm_80 where a count without them was 112."""


def joins(spec: Spec, language: Language) -> bool:
    """Whether one kernel of a language attends pooled keys and tokens; those of GPUs have other tiles for either."""
    return language == "tvm" and lanes.joins(spec)


def solve(kernel: KernelKey, spec: Spec, target: Target) -> Schedule:
    """The best schedule of a kernel for a target.

    Raises:
        InfeasibleError: No tiling fits; names the limit that binds the smallest one.
    """
    if target.language == "tvm":
        return lanes.tile_of(kernel, spec)
    tiling = tiling_of(kernel, spec)
    candidates = tuple(_offered(tiling, target))
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
    if target.language == "tvm":
        return lanes.tiles(kernel, spec)
    return _offered(tiling_of(kernel, spec), target)


def fits(kernel: KernelKey, spec: Spec, target: Target, schedule: Schedule) -> bool:
    """Whether a schedule keeps the limits of a target."""
    if target.language == "tvm":
        return schedule in lanes.tiles(kernel, spec)
    tiling = tiling_of(kernel, spec)
    return tiling.divides(schedule, target) and _excess(tiling, target, schedule) is None


def tiling_of(kernel: KernelKey, spec: Spec) -> Tiling:
    """The tilings of a kernel."""
    return TILINGS[kernel.kind](kernel, spec)


def _offered(tiling: Tiling, target: Target) -> Iterator[Schedule]:
    """The schedules whose products the warps of a block can divide; there is always one, see `thread_choices`."""
    return (schedule for schedule in tiling.space(target) if tiling.divides(schedule, target))


def _excess(tiling: Tiling, target: Target, schedule: Schedule) -> tuple[str, float, float] | None:
    """The limit that a schedule breaks with its value and bound, or None."""
    if not target.is_cuda:
        return None
    shared = tiling.shared_bytes(schedule)
    if shared > target.shared_per_block:
        return "shared memory per block (bytes)", shared, target.shared_per_block
    registers = registers_of(tiling, schedule, target)
    bound = REGISTER_SHARE["wgmma" if tiling.grouped(schedule, target) else "mma"] * target.registers_per_thread
    if registers > bound:
        return "registers per thread held by fragments, operands and addresses", registers, bound
    return None


def registers_of(tiling: Tiling, schedule: Schedule, target: Target) -> float:
    """Registers that fragments, an operand and the addresses of copies hold in every thread."""
    copies = tiling.copied_bytes(schedule) / COPY_BYTES
    spread = (tiling.fragment_cells(schedule) + ADDRESS_REGISTERS * copies) / schedule.threads
    return spread + tiling.operand_registers(schedule, target) + (RAGGED_REGISTERS if tiling.ragged else 0)
