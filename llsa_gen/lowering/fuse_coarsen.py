# SPDX-License-Identifier: Apache-2.0
"""Fuse coarsen: several levels of an operand in one pass over it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, cast

from llsa_gen.ir import names, tensors
from llsa_gen.ir.types import Plan
from llsa_gen.stages import Coarsen

if TYPE_CHECKING:
    from llsa_gen.spec import Spec

MAX_ROWS = 1024
"""Rows that one block of threads reduces: more would leave too few blocks for a short sequence."""

MAX_SUM_BYTES = 48 * 1024
"""Shared memory for the fp32 sums of the lowest level: what a CUDA block gets without asking (CUDA C programming
guide, table of technical specifications: 48 KiB of static shared memory per block)."""


def fuse_coarsen(plan: Plan) -> Plan:
    """Merges the levels of each operand into as few passes as fit; later passes read the sums of the former."""
    coarsens = [cast(Coarsen, stage) for stage in plan.of_kind(Coarsen.kind)]
    operands = dict.fromkeys(stage.operand for stage in coarsens)
    passes = [stage for operand in operands for stage in _passes(plan.spec, operand)]
    sums = [tensors.sums(stage.operand, stage.levels[-1]) for stage in passes if stage.emit_sums]
    others = [stage for stage in plan.stages if stage not in coarsens]
    split = len(plan.inputs)
    return replace(plan, tensors=(*plan.tensors[:split], *sums, *plan.tensors[split:]), stages=(*passes, *others))


def levels_per_pass(block: int, width: int) -> int:
    """The most levels m of one pass: block**m rows are reduced and block**(m-1) rows of fp32 sums are shared."""
    count = 1
    while block ** (count + 1) <= MAX_ROWS and block**count * width * 4 <= MAX_SUM_BYTES:
        count += 1
    return count


def _passes(spec: Spec, operand: Literal["q", "k", "v"]) -> list[Coarsen]:
    step = levels_per_pass(spec.block, spec.dim_v if operand == "v" else spec.head_dim)
    passes = []
    for number, first in enumerate(range(1, spec.depth + 1, step), start=1):
        levels = tuple(range(first, min(first + step, spec.depth + 1)))
        passes.append(_pass(operand, levels, number, emit_sums=levels[-1] < spec.depth))
    return passes


def _pass(operand: Literal["q", "k", "v"], levels: tuple[int, ...], number: int, *, emit_sums: bool) -> Coarsen:
    source = levels[0] - 1
    means = tuple(names.pool(operand, level) for level in levels)
    return Coarsen(
        name=f"coarsen_{operand}" if number == 1 else f"coarsen_{operand}_{number}",
        inputs=(names.sums(operand, source) if source else operand,),
        outputs=(*means, names.sums(operand, levels[-1])) if emit_sums else means,
        operand=operand,
        source_level=source,
        levels=levels,
        emit_sums=emit_sums,
    )
