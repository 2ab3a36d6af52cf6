# SPDX-License-Identifier: Apache-2.0
"""Running a plan with built kernels: one binder per kind of stage says what its kernel is called with.

On a CPU the kernels compute in fp32. Half-precision tensors are widened once; what a plan stores in the input dtype is
rounded to it between stages, so that every stage reads the same values as on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from llsa_gen.ir.types import Stage
from llsa_gen.jit import Kernel
from llsa_gen.ops.binders import BINDERS
from llsa_gen.ops.binders.coarsen import pools_name
from llsa_gen.ops.launch import launch, readable
from llsa_gen.ops.state import Run
from llsa_gen.stages import Coarsen

Step = tuple[Stage, Kernel]
"""A stage of a plan with the kernel that it launches."""


def run_steps(steps: Sequence[Step], run: Run) -> dict[str, Tensor]:
    """Runs some stages of a plan in order and returns all tensors by name."""
    for stage, kernel in steps:
        launch(kernel, BINDERS[stage.kind](stage, run))
        if stage.kind == "coarsen" and run.widened:
            pools = run.tensors[pools_name(cast(Coarsen, stage))]
            pools.copy_(pools.to(run.dtype))
    return run.tensors


def widen(tensor: Tensor) -> Tensor:
    """A tensor as the kernels of its device read it."""
    if tensor.device.type == "cpu" and tensor.dtype != torch.float32:
        return tensor.to(torch.float32, memory_format=torch.contiguous_format)
    return readable(tensor)
