# SPDX-License-Identifier: Apache-2.0
"""The arguments of a launch of `attend_grad_q`."""

from __future__ import annotations

from typing import cast

from llsa_gen.ir import names
from llsa_gen.ir.types import Stage
from llsa_gen.ops.binders.attend import new_rows, segment_arguments
from llsa_gen.ops.launch import Arguments, strides
from llsa_gen.ops.state import Run
from llsa_gen.stages import AttendGradQ


def bind(stage: Stage, run: Run) -> Arguments:
    """Allocates the gradient of q, or the carry of a stage that is not the last."""
    grad = cast(AttendGradQ, stage)
    o_grad = run.tensors["o_grad"]
    q_grad = new_rows(run, run.tensors["q"].shape[-1], final=grad.final)
    run.tensors[grad.outputs[0]] = q_grad
    carried = {names.Q_GRAD_CARRY: run.tensors[names.Q_GRAD_CARRY]} if grad.carry else {}
    return {
        **segment_arguments(grad, run),
        **strides("o_grad", o_grad),
        **strides("q_grad", q_grad),
        **carried,
        "o_grad": o_grad,
        "lse": run.tensors["lse"].contiguous(),
        "delta": run.tensors[names.DELTA],
        "q_grad": q_grad,
    }
