# SPDX-License-Identifier: Apache-2.0
"""The arguments of the launches of `invert_index`."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, cast

import torch
from torch import Tensor

from llsa_gen.errors import InternalError, UnsupportedError, explain
from llsa_gen.ir import names
from llsa_gen.ir.sizes import SHORT_NODES, IntSizes, part_entries
from llsa_gen.ir.tensors import CHUNKS
from llsa_gen.ir.types import Stage
from llsa_gen.ops.launch import Arguments
from llsa_gen.ops.state import Run
from llsa_gen.spec import Spec
from llsa_gen.stages import InvertIndex
from llsa_gen.stages.invert_index import Phase

MAX_ENTRIES = 2**30
"""Most entries of the lists of one head: places of entries are 32-bit."""

Shapes = dict[str, tuple[int, ...]]

_NAMES = {
    "counts": names.counts,
    "offsets": names.offsets,
    "rows": names.rows,
    "part_offsets": names.part_offsets,
    "part_nodes": names.part_nodes,
}
"""What the tables of the kernel are called in a plan."""


class Cut(NamedTuple):
    """How long inverted lists are cut.

    Attributes:
        entries: Entries of a part; a list that is no longer has no parts.
        places: Places for the parts of all lists of a head.
    """

    entries: int
    places: int


UNCUT = Cut(MAX_ENTRIES, 0)
"""Lists stay whole."""


def bind(stage: Stage, run: Run) -> Arguments:
    """Allocates what the phase produces. A phase changes the counts in place, so none can be run twice."""
    invert = cast(InvertIndex, stage)
    level = invert.level
    tables = {name: run.tensors[spelt(level)] for name, spelt in _NAMES.items() if spelt(level) in run.tensors}
    cut = _cut(run.spec, level, run.sizes.length)
    found = arguments(invert.phase, run.tensors[names.lists(level)], run.sizes.nodes[level - 1], cut, tables)
    run.tensors.update({_NAMES[name](level): table for name, table in tables.items()})
    return found


def arguments(phase: Phase, idx: Tensor, nodes: int, cut: Cut, tables: dict[str, Tensor]) -> Arguments:
    """The arguments of one phase, with what it produces added to the tables.

    Args:
        phase: The phase.
        idx: Contiguous lists [B,H,rows,K].
        nodes: What the entries count.
        cut: How long lists are cut.
        tables: The tensors of earlier phases by parameter; ``counts`` is [B,H,CHUNKS,nodes], ``offsets`` and
            ``part_offsets`` [B,H,nodes + 1], ``part_nodes`` [B,H,places] and ``rows`` has the shape of idx.

    Raises:
        UnsupportedError: The lists of a head have too many entries.
        InternalError: They name too many nodes for one launch.
    """
    batch, heads, rows, topk = idx.shape
    if rows * topk > MAX_ENTRIES:
        what, value, allowed = "lists are too long to invert", f"{rows} rows of {topk}", f"{MAX_ENTRIES} entries a head"
        raise UnsupportedError(explain(what, where="idx", value=value, allowed=allowed, hint="lower topk"))
    if phase == "whole" and nodes > SHORT_NODES:
        raise InternalError(explain("too many nodes for one launch", where="idx", value=nodes, allowed=SHORT_NODES))
    for name, shape in _produced(phase, idx, nodes, cut.places).items():
        tables[name] = torch.empty((batch, heads, *shape), dtype=torch.int32, device=idx.device)
    return {
        "batch": batch,
        "heads": heads,
        "idx": idx,
        **{name: tables.get(name, idx) for name in _NAMES},  # a phase does not touch the tables of later ones
        "nodes_q": rows,
        "topk": topk,
        "nodes_k": nodes,
        "part_entries": cut.entries,
        "part_places": cut.places,
    }


def _produced(phase: Phase, idx: Tensor, nodes: int, places: int) -> Shapes:
    """The shapes of the tables that a phase makes, without batch and head."""
    bounds: Shapes = {"offsets": (nodes + 1,), "part_offsets": (nodes + 1,), "part_nodes": (places,)}
    rows: Shapes = {"rows": tuple(idx.shape[2:])}
    made: dict[Phase, Shapes] = {
        "count": {"counts": (CHUNKS, nodes)},
        "scan": bounds,
        "scatter": rows,
        "whole": {**bounds, **rows},
    }
    return made[phase]


@lru_cache(maxsize=1024)
def _cut(spec: Spec, level: int, length: int) -> Cut:
    """How the lists of a level are cut in a call of a length."""
    return Cut(part_entries(spec, level), IntSizes.square(spec, length).parts(level))
