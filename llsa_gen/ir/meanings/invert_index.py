# SPDX-License-Identifier: Apache-2.0
"""The meaning of inverting lists, as a whole and in phases."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from llsa_gen.ir import names
from llsa_gen.ir.meanings.state import State
from llsa_gen.ir.sizes import part_entries
from llsa_gen.ir.tensors import CHUNKS
from llsa_gen.ir.types import Stage

if TYPE_CHECKING:
    from llsa_gen.stages import InvertIndex


def invert_index(stage: Stage, state: State) -> None:
    """Inverts the lists of a level, or does a phase of it."""
    invert = cast("InvertIndex", stage)
    level, nodes = invert.level, int(state.sizes.nodes(invert.level, "k"))
    if invert.phase == "count":
        state.values[names.counts(level)] = _counts(state.lists(level), nodes)
    if invert.phase in ("whole", "scan"):
        if invert.phase == "scan":
            found = state.values[names.counts(level)].sum(-1)
        else:
            found = _counts(state.lists(level), nodes).sum(-1)
        state.values[names.offsets(level)] = _bounds(found)
        if invert.in_parts:
            _write_parts(invert, found, state)
    if invert.phase in ("whole", "scatter"):
        state.values[names.rows(level)] = _inverted(state.lists(level), nodes)


def _counts(lists: Tensor, nodes: int) -> Tensor:
    """How often each node occurs in each chunk of rows, ``[B, H, nodes, CHUNKS]``."""
    rows = lists.shape[2]
    chunk = torch.arange(rows) // -(-rows // CHUNKS)
    cells = lists * CHUNKS + chunk[:, None]
    places = cells.masked_fill(lists < 0, nodes * CHUNKS).flatten(2)
    counted = torch.zeros((*lists.shape[:2], nodes * CHUNKS + 1), dtype=torch.long)
    counted.scatter_add_(2, places, torch.ones_like(places))
    return counted[:, :, :-1].reshape(*lists.shape[:2], nodes, CHUNKS)


def _bounds(counts: Tensor) -> Tensor:
    """Where each of so many entries begin, and where the last end."""
    return torch.nn.functional.pad(counts.cumsum(-1), (1, 0))


def _write_parts(invert: InvertIndex, counts: Tensor, state: State) -> None:
    size, places = part_entries(state.plan.spec, invert.level), int(state.sizes.parts(invert.level))
    bounds = _bounds(torch.where(counts > size, -(-counts // size), 0))
    part = torch.arange(places).expand(*bounds.shape[:2], -1).contiguous()
    owners = torch.searchsorted(bounds, part, right=True) - 1
    state.values[names.part_offsets(invert.level)] = bounds
    state.values[names.part_nodes(invert.level)] = owners.masked_fill(part >= bounds[..., -1:], -1)


def _inverted(lists: Tensor, nodes: int) -> Tensor:
    """The rows of every node, node after node, -1 behind the last."""
    ordered, order = lists.masked_fill(lists < 0, nodes).flatten(2).sort(dim=-1, stable=True)
    return (order // lists.shape[3]).masked_fill(ordered == nodes, -1)
