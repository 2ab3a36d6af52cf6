# SPDX-License-Identifier: Apache-2.0
"""What the template of `invert_index` sees."""

from __future__ import annotations

from dataclasses import dataclass

from llsa_gen.codegen.heading import heading
from llsa_gen.codegen.views.base import INT32, KernelView, parameters
from llsa_gen.dtypes import get_dtype
from llsa_gen.ir.sizes import SHORT_NODES
from llsa_gen.ir.tensors import CHUNKS
from llsa_gen.ir.types import Plan, Stage


@dataclass(frozen=True)
class Table:
    """A contiguous int32 tensor, after its batch and head axes of one or two more.

    Attributes:
        name: Its parameter.
        shape: Extents of its axes.
    """

    name: str
    shape: tuple[str, ...]

    @property
    def strides(self) -> tuple[str, ...]:
        """64-bit strides of all axes but the last: all heads together may hold more than 2**31 elements."""
        inner = [f"({extent})" if " " in extent else extent for extent in self.shape]
        return tuple(" * ".join([f"T.int64({self.shape[-1]})", *inner[axis:-1]]) for axis in range(1, len(inner)))


@dataclass(frozen=True)
class InvertIndexView(KernelView):
    """The values of the file that holds all phases."""

    chunks: int = 0
    short_nodes: int = 0
    views: tuple[Table, ...] = ()


def view(plan: Plan, stage: Stage) -> InvertIndexView:
    """One text for all phases, with one list of parameters; nothing in it depends on the spec."""
    views = _views()
    ints = ("batch", "heads", "nodes_q", "topk", "nodes_k", "part_entries", "part_places")
    return InvertIndexView(
        name=stage.factory,
        template=stage.template,
        heading=heading(plan.spec, stage.template),
        summary="From the nodes that every row selected to the rows that selected every node.",
        parameters=parameters({view.name: INT32 for view in views}, ints),
        block=plan.spec.block,
        dtype=get_dtype(plan.spec.dtype).tilelang_name,
        chunks=CHUNKS,
        short_nodes=SHORT_NODES,
        views=views,
    )


def _views() -> tuple[Table, ...]:
    tables = {
        "idx": ("nodes_q * topk",),
        "counts": ("CHUNKS", "nodes_k"),
        "offsets": ("nodes_k + 1",),
        "rows": ("nodes_q * topk",),
        "part_offsets": ("nodes_k + 1",),
        "part_nodes": ("part_places",),
    }
    return tuple(Table(name, ("batch", "heads", *shape)) for name, shape in tables.items())
