# SPDX-License-Identifier: Apache-2.0
"""What the template of `coarsen` sees."""

from __future__ import annotations

from llsa_gen.codegen.heading import heading
from llsa_gen.codegen.views.base import DTYPE, FP32, KernelView, parameters, strides
from llsa_gen.dtypes import get_dtype
from llsa_gen.ir.types import Plan, Stage


def view(plan: Plan, stage: Stage) -> KernelView:
    """One kernel for every instance of the stage."""
    ints = ("batch", "heads", "length", "tokens", "span", "first", "pool_rows", *strides("x"))
    return KernelView(
        name=stage.factory,
        template=stage.template,
        heading=heading(plan.spec, stage.template),
        summary="Means over one or several levels.",
        parameters=parameters({"x": "source_dtype", "pools": DTYPE, "sums": FP32}, ints),
        block=plan.spec.block,
        dtype=get_dtype(plan.spec.dtype).tilelang_name,
    )
