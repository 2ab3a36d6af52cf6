# SPDX-License-Identifier: Apache-2.0
"""Text: a plan as people read it."""

from __future__ import annotations

from llsa_gen.ir.types import Plan, Stage, TensorType


def format_plan(plan: Plan) -> str:
    """A listing of the tensors and the stages of a plan, in order of execution."""
    used = [*(tensor.name for tensor in plan.tensors), *(stage.name for stage in plan.stages)]
    width = max(len(name) for name in used)
    tensors = [f"  {tensor.name:<{width}}  {format_tensor(tensor)}" for tensor in plan.tensors]
    stages = [f"  {stage.name:<{width}}  {format_stage(stage, plan)}" for stage in plan.stages]
    return "\n".join(["tensors", *tensors, "stages", *stages])


def format_tensor(tensor: TensorType) -> str:
    """Role, type and extents, for example ``temporary bf16 [B, H, n1q+n2q, D]``."""
    extents = ", ".join(axis.extent for axis in tensor.axes)
    return f"{tensor.role:<9} {tensor.dtype:<5} [{extents}]"


def format_stage(stage: Stage, plan: Plan) -> str:
    """Data flow and kernel, for example ``q -> q_pools   coarsen(width=64, …)``."""
    key = stage.kernel(plan)
    args = ", ".join(f"{name}={value}" for name, value in key.args)
    return f"{', '.join(stage.inputs)} -> {', '.join(stage.outputs)}   {key.kind}({args})"
