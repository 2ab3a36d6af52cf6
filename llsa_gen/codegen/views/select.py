# SPDX-License-Identifier: Apache-2.0
"""What the template of `select` sees."""

from __future__ import annotations

from llsa_gen.codegen.heading import heading
from llsa_gen.codegen.views.base import DTYPE, INT32, KernelView, parameters
from llsa_gen.dtypes import get_dtype
from llsa_gen.ir.types import Plan, Stage
from llsa_gen.schedule.limits import tile_widths


def view(plan: Plan, stage: Stage) -> KernelView:
    """One kernel for every instance of the stage."""
    pointers = {"q_pools": DTYPE, "k_pools": DTYPE, "parents": INT32, "idx": INT32}
    ints = ("batch", "heads", "kv_heads", "nodes_q", "nodes_k", "q_rows", "k_rows", "first_q", "first_k")
    return KernelView(
        name=stage.factory,
        template=stage.template,
        heading=heading(plan.spec, stage.template),
        summary="The top-k key nodes of every query node.",
        parameters=parameters(pointers, ints),
        block=plan.spec.block,
        dtype=get_dtype(plan.spec.dtype).tilelang_name,
        head_dim=plan.spec.head_dim,
        head_tile=tile_widths(plan.spec.head_dim, plan.spec.dim_v)[0],
    )
