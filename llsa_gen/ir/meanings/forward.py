# SPDX-License-Identifier: Apache-2.0
"""The meaning of the stages of a forward pass."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from llsa_gen.ir import names
from llsa_gen.ir.meanings.segments import segment_terms
from llsa_gen.ir.meanings.state import State, children, gather, regroup
from llsa_gen.ir.types import Piece, Stage

if TYPE_CHECKING:
    from llsa_gen.stages import Attend, Coarsen, Segment, Select


def coarsen(stage: Stage, state: State) -> None:
    """Means, from the tokens or from the sums of the level below."""
    coarsen = cast("Coarsen", stage)
    side = names.side(coarsen.operand)
    level, rows = coarsen.source_level, _widened(state.read(coarsen.reads(state.plan)[0]))
    means = [piece for piece in coarsen.writes(state.plan) if "_sums_" not in piece.tensor]
    for piece in means:
        rows = _group_sums(rows, state.plan.spec.block ** (piece.level - level))
        level = piece.level
        mean = rows / state.counts(level, side).to(rows.dtype)[:, None]
        state.write(piece, mean.to(state.values[coarsen.operand].dtype))
    if coarsen.emit_sums:
        state.write(Piece(names.sums(coarsen.operand, level), level), rows)


def _widened(rows: Tensor) -> Tensor:
    """Rows in the dtype of sums."""
    return rows if rows.dtype == torch.float64 else rows.float()


def _group_sums(rows: Tensor, span: int) -> Tensor:
    """Sums of ``span`` rows each, the last of what is left."""
    span = min(span, rows.shape[2])
    padded = torch.nn.functional.pad(rows, (0, 0, 0, -rows.shape[2] % span))
    return regroup(padded, span).sum(3)


def select(stage: Stage, state: State) -> None:
    """The lists of one level."""
    select = cast("Select", stage)
    queries, keys = (state.rows(select, operand, select.level) for operand in ("q", "k"))
    batch, heads, rows, _ = queries.shape
    if select.candidates == "all":
        ids = torch.arange(keys.shape[2]).expand(batch, heads, rows, -1)
    else:
        parents = state.lists(select.level + 1)[:, :, torch.arange(rows) // state.plan.spec.block]
        ids = children(parents, state.plan.spec.block, keys.shape[2])
    topk = state.plan.spec.topks[select.level - 1]
    state.values[names.lists(select.level)] = _best(queries, keys, ids, topk)


def _best(queries: Tensor, keys: Tensor, ids: Tensor, topk: int) -> Tensor:
    """The ids with the largest scores, ties to the lowest id, -1 where there are not enough."""
    missing = torch.iinfo(ids.dtype).max
    ids = torch.where(ids < 0, missing, ids).sort(dim=-1).values
    is_real = ids != missing
    candidates = gather(keys, torch.where(is_real, ids, 0))
    scores = (queries[..., None, :] * candidates).sum(-1)
    scores = torch.where(is_real & ~scores.isnan(), scores, -math.inf)
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    best = torch.where(is_real, ids, -1).gather(-1, order)[..., :topk]
    return torch.nn.functional.pad(best, (0, topk - best.shape[-1]), value=-1)


def attend(stage: Stage, state: State) -> None:
    """Output and log-sum-exp over some segments, with what is carried."""
    attend = cast("Attend", stage)
    parts = [_attend_segment(attend, segment, state) for segment in attend.segments]
    if attend.carry:
        parts.insert(0, (state.values["o_carry"], state.values["lse_carry"]))
    o, lse = parts[0]
    for part in parts[1:]:
        o, lse = _merge(o, lse, *part)
    for piece, value in zip(attend.writes(state.plan), (o, lse), strict=True):
        state.write(piece, value)


def _merge(o_a: Tensor, lse_a: Tensor, o_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over two sets of keys from attention over each."""
    lse = torch.logaddexp(lse_a, lse_b)
    is_empty = lse == -math.inf
    share_a, share_b = (torch.where(is_empty, 0.0, (part - lse).exp())[..., None] for part in (lse_a, lse_b))
    return o_a * share_a + o_b * share_b, lse


def _attend_segment(attend: Attend, segment: Segment, state: State) -> tuple[Tensor, Tensor]:
    """Attention over the keys of one segment."""
    terms = segment_terms(attend, segment, state)
    o, lse = _softmax(terms.logits, terms.kept, terms.values)
    return terms.ungrouped(o), terms.ungrouped(lse)


def _softmax(logits: Tensor, kept: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp over the kept keys; 0 and -inf where the weights sum to nothing.

    Keys that are not kept do not count at all: not even an infinite or NaN value of theirs is seen.
    """
    logits = torch.where(kept, logits, -math.inf)
    top = logits.amax(-1, keepdim=True)
    weights = (logits - torch.where(top == -math.inf, 0.0, top)).exp()
    total = weights.sum(-1)
    o = torch.where((total == 0)[..., None], 0.0, _weighted_sum(weights, kept, values) / total[..., None])
    return o, torch.where(total == 0, -math.inf, total.log() + top[..., 0])


def _weighted_sum(weights: Tensor, kept: Tensor, values: Tensor) -> Tensor:
    """Sums of the kept values: a product of matrices where all queries of a group keep the same keys."""
    if kept.shape[3] == 1:
        return weights @ torch.where(kept[:, :, :, 0, :, None], values, 0.0)
    return torch.where(kept[..., None], weights[..., None] * values[:, :, :, None], 0.0).sum(-2)
