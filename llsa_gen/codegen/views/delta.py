# SPDX-License-Identifier: Apache-2.0
"""What the template of `delta` sees."""

from __future__ import annotations

from dataclasses import dataclass

from llsa_gen.codegen.heading import heading
from llsa_gen.codegen.views.base import DTYPE, FP32, KernelView, View, parameters, strides
from llsa_gen.dtypes import get_dtype
from llsa_gen.ir.types import Plan, Stage
from llsa_gen.schedule.limits import padded_to_power


@dataclass(frozen=True)
class DeltaView(KernelView):
    """The values of a kernel that multiplies rows of o by rows of its gradient."""

    value_dim: int = 0
    value_tile: int = 0
    views: tuple[View, ...] = ()


def view(plan: Plan, stage: Stage) -> DeltaView:
    """One kernel for every instance of the stage."""
    pointers = {"o": DTYPE, "o_grad": DTYPE, "lse_grad": FP32, "delta": FP32}
    shape = ("batch", "len_q", "heads", "VALUE_DIM")
    ints = ("batch", "heads", "len_q", *strides("o", "o_grad"))
    return DeltaView(
        name=stage.factory,
        template=stage.template,
        heading=heading(plan.spec, stage.template),
        summary="The part of the logits' gradients that all keys of a query share.",
        parameters=parameters(pointers, ints),
        block=plan.spec.block,
        dtype=get_dtype(plan.spec.dtype).tilelang_name,
        value_dim=plan.spec.dim_v,
        value_tile=padded_to_power(plan.spec.dim_v),
        views=tuple(View(name, shape, DTYPE) for name in ("o", "o_grad")),
    )
