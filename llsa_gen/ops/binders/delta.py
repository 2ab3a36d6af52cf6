# SPDX-License-Identifier: Apache-2.0
"""The arguments of a launch of `delta`."""

from __future__ import annotations

import torch

from llsa_gen.ir.types import Stage
from llsa_gen.ops.launch import Arguments, strides
from llsa_gen.ops.state import Run


def bind(stage: Stage, run: Run) -> Arguments:
    """Allocates delta."""
    o, o_grad, lse_grad = (run.tensors[name] for name in ("o", "o_grad", "lse_grad"))
    delta = torch.empty(o.shape[:3], dtype=torch.float32, device=o.device)
    run.tensors[stage.outputs[0]] = delta
    return {
        **run.counts,
        **strides("o", o),
        **strides("o_grad", o_grad),
        "len_q": o.shape[2],
        "o": o,
        "o_grad": o_grad,
        "lse_grad": lse_grad.contiguous(),
        "delta": delta,
    }
