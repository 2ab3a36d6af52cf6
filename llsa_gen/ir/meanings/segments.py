# SPDX-License-Identifier: Apache-2.0
"""The keys of a segment as every group of queries sees them: rows, logits, and which of them count."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llsa_gen.ir.meanings.state import State, children, gather, regroup
from llsa_gen.ir.types import Stage

if TYPE_CHECKING:
    from llsa_gen.stages import Segment


@dataclass(frozen=True)
class Terms:
    """Queries in groups that share a row of a list, with the C keys of each group.

    Attributes:
        length: Number of queries.
        span: Queries of a group.
        ids: The nodes, ``[B, H, groups, C]``, -1 where there is none.
        queries: ``[B, H, groups, span, D]``, zeros behind the last.
        keys: ``[B, H, groups, C, D]``.
        values: ``[B, H, groups, C, Dv]``.
        logits: With the logarithms of the weights, ``[B, H, groups, span, C]``.
        kept: Whether a key counts for a query, of that shape or broadcasting to it.
    """

    length: int
    span: int
    ids: Tensor
    queries: Tensor
    keys: Tensor
    values: Tensor
    logits: Tensor
    kept: Tensor

    def grouped(self, rows: Tensor) -> Tensor:
        """Rows of the queries in groups, zeros behind the last."""
        pad = (0, 0) * (rows.dim() - 3) + (0, self.ids.shape[2] * self.span - self.length)
        padded = torch.nn.functional.pad(rows, pad)
        return padded.reshape(*rows.shape[:2], self.ids.shape[2], self.span, *rows.shape[3:])

    def ungrouped(self, groups: Tensor) -> Tensor:
        """Groups as rows of the queries."""
        return groups.flatten(2, 3)[:, :, : self.length]


def segment_terms(stage: Stage, segment: Segment, state: State, lists: Tensor | None = None) -> Terms:
    """The terms of one segment.

    Args:
        stage: A stage that reads q and the rows of k and v at the segment's level.
        segment: Which keys.
        state: The tensors so far.
        lists: The lists one level up; those of the plan without it.
    """
    queries = state.rows(stage, "q", 0)
    keys, values = (state.rows(stage, operand, segment.level) for operand in ("k", "v"))
    ids = _segment_ids(segment, keys.shape[2], state, lists)
    length, groups = queries.shape[2], ids.shape[2]
    span = length if segment.keys == "all" else state.plan.spec.block ** (segment.level + 1)
    span = min(span, length) if groups == 1 else span
    grouped = regroup(torch.nn.functional.pad(queries, (0, 0, 0, groups * span - length)), span)
    near = [gather(rows, ids.clamp(min=0)) for rows in (keys, values)]
    logits = state.scale * torch.einsum("bhgqd,bhgcd->bhgqc", grouped, near[0])
    logits = logits + _log_weights(segment.level, state)[ids.clamp(min=0)][:, :, :, None]
    kept = (ids >= 0)[:, :, :, None] & ~_refined(segment, ids, span, state)
    return Terms(length, span, ids, grouped, near[0], near[1], logits, kept)


def _segment_ids(segment: Segment, nodes: int, state: State, lists: Tensor | None) -> Tensor:
    """The keys of a segment, one row per group of queries, -1 where there is none."""
    if segment.keys == "lists":
        return children(state.lists(segment.level + 1) if lists is None else lists, state.plan.spec.block, nodes)
    batch, heads = state.values["q"].shape[:2]
    return torch.arange(nodes).expand(batch, heads, 1, -1)


def _log_weights(level: int, state: State) -> Tensor:
    """ln w of every node of a level; tokens weigh 1."""
    if level == 0:
        return torch.zeros(int(state.sizes.nodes(0, "k")), dtype=state.compute)
    counts = state.counts(level, "k").long().tolist()
    weights = {count: math.log(state.plan.spec.level_weight(level, count)) for count in set(counts)}
    return torch.tensor([weights[count] for count in counts], dtype=state.compute)


def _refined(segment: Segment, ids: Tensor, span: int, state: State) -> Tensor:
    """Whether a query leaves a node out because its own list has it: ``[B, H, groups, span, C]``."""
    batch, heads, groups, _ = ids.shape
    if state.plan.spec.enrichment != "exclude_refined" or segment.level == 0:
        return torch.zeros(1, 1, 1, 1, 1, dtype=torch.bool)
    lists = state.lists(segment.level)
    nodes = int(state.sizes.nodes(segment.level, "k"))
    table = torch.zeros(batch, heads, lists.shape[2], nodes + 1, dtype=torch.bool)
    table.scatter_(3, torch.where(lists < 0, nodes, lists), True)
    query = torch.arange(groups * span).clamp(max=int(state.sizes.nodes(0, "q")) - 1)
    own = (query // state.plan.spec.block**segment.level).reshape(groups, span)
    found = table[:, :, own]
    return found.gather(-1, ids.clamp(min=0)[:, :, :, None].expand(-1, -1, -1, span, -1))
