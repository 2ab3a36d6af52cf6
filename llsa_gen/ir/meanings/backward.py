# SPDX-License-Identifier: Apache-2.0
"""The meaning of the stages of a backward pass."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from llsa_gen.ir import names
from llsa_gen.ir.meanings.segments import Terms, segment_terms
from llsa_gen.ir.meanings.state import State, regroup
from llsa_gen.ir.sizes import query_splits
from llsa_gen.ir.types import Stage

if TYPE_CHECKING:
    from llsa_gen.stages import AttendGradKV, AttendGradQ, GradKVStage, MergeGradKV


def delta(stage: Stage, state: State) -> None:
    """What all keys of a query share."""
    o, o_grad, lse_grad = (state.values[name].to(state.compute) for name in stage.inputs)
    state.values[names.DELTA] = (o * o_grad).sum(-1) - lse_grad


def attend_grad_q(stage: Stage, state: State) -> None:
    """The gradient of q over some segments, with what is carried."""
    walk = cast("AttendGradQ", stage)
    total = state.values[names.Q_GRAD_CARRY] if walk.carry else torch.zeros_like(state.rows(walk, "q", 0))
    for segment in walk.segments:
        terms = segment_terms(walk, segment, state)
        logit_grads = _weights_and_logit_grads(terms, state)[1]
        total = total + state.scale * terms.ungrouped(logit_grads @ terms.keys)
    state.values[walk.outputs[0]] = total


def attend_grad_kv(stage: Stage, state: State) -> None:
    """The sums of one level; what comes in parts lies in the first part of each, the others are zero."""
    grads = cast("AttendGradKV", stage)
    segment = grads.segment
    lists = None if segment.keys == "all" else _lists_of_inverted(segment.level + 1, state)
    terms = segment_terms(grads, segment, state, lists)
    weights, logit_grads = _weights_and_logit_grads(terms, state)
    o_grad = terms.grouped(state.values["o_grad"].to(state.compute))
    sums = {"k": state.scale * logit_grads.mT @ terms.queries, "v": weights.mT @ o_grad}
    for operand, contribution in sums.items():
        total = _sum_by_node(contribution, terms.ids, int(state.sizes.nodes(segment.level, "k")))
        if not grads.in_parts:
            _finish(grads, operand, total, state)
        elif segment.keys == "all":
            first = torch.nn.functional.one_hot(torch.tensor(0), query_splits(state.plan.spec)).to(total)
            state.values[names.parts(operand, segment.level)] = total[:, :, :, None] * first[:, None]
        else:
            _hold_back(grads, operand, total, state)


def merge_grad_kv(stage: Stage, state: State) -> None:
    """Adds the parts up where there are any."""
    merge = cast("MergeGradKV", stage)
    for operand in ("k", "v"):
        parts = state.values[names.parts(operand, merge.level)]
        if merge.segment.keys == "all":
            _finish(merge, operand, parts.sum(3), state)
            continue
        owners = state.values[names.part_nodes(merge.level + 1)]
        blocks = parts.new_zeros((*parts.shape[:2], int(state.sizes.nodes(merge.level + 1, "k")) + 1, *parts.shape[3:]))
        places = owners.masked_fill(owners < 0, blocks.shape[2] - 1)[..., None, None].expand_as(parts)
        total = blocks.scatter_add(2, places, parts)[:, :, :-1].flatten(2, 3)
        begun = state.values[names.gradient(operand, merge.level)]
        finished = _finished(merge, operand, total[:, :, : begun.shape[2]], state)
        state.values[names.gradient(operand, merge.level)] = torch.where(_is_long(merge, state), finished, begun)


def _weights_and_logit_grads(terms: Terms, state: State) -> tuple[Tensor, Tensor]:
    """p and s_grad of every query and key, zero where the key does not count for the query."""
    lse, delta, o_grad = (
        terms.grouped(state.values[name].to(state.compute)) for name in ("lse", names.DELTA, "o_grad")
    )
    is_attending = (lse != -math.inf)[..., None] & terms.kept
    weights = torch.where(is_attending, (terms.logits - lse[..., None]).exp(), 0.0)
    grads = weights * (o_grad @ terms.values.mT - delta[..., None])
    return weights, torch.where(is_attending, grads, 0.0)


def _sum_by_node(contribution: Tensor, ids: Tensor, nodes: int) -> Tensor:
    """Adds up what every group gives to its keys: ``[B, H, groups, C, D]`` to ``[B, H, nodes, D]``."""
    places = ids.masked_fill(ids < 0, nodes).flatten(2)[..., None]
    flat = contribution.flatten(2, 3)
    total = flat.new_zeros((*flat.shape[:2], nodes + 1, flat.shape[-1]))
    return total.scatter_add(2, places.expand_as(flat), flat)[:, :, :nodes]


def _finish(stage: GradKVStage, operand: str, total: Tensor, state: State) -> None:
    state.values[names.gradient(operand, stage.level)] = _finished(stage, operand, total, state)


def _finished(stage: GradKVStage, operand: str, total: Tensor, state: State) -> Tensor:
    """The share of one token of every node, with what the level above passes on."""
    mean = total / state.counts(stage.level, "k")[:, None]
    if not stage.has_above:
        return mean
    above = state.values[names.gradient(operand, stage.level + 1)]
    return mean + above[:, :, torch.arange(total.shape[2]) // state.plan.spec.block]


def _hold_back(stage: GradKVStage, operand: str, total: Tensor, state: State) -> None:
    """Writes the finished rows, and the children of long lists as the first of their parts."""
    _finish(stage, operand, total.masked_fill(_is_long(stage, state), 0.0), state)
    up, block = stage.level + 1, state.plan.spec.block
    owners, offsets = state.values[names.part_nodes(up)], state.values[names.part_offsets(up)]
    padded = regroup(torch.nn.functional.pad(total, (0, 0, 0, -total.shape[2] % block)), block)
    places = owners.clamp(min=0)
    is_first = (owners >= 0) & (offsets.gather(2, places) == torch.arange(owners.shape[2]))
    index = places[..., None, None].expand(*places.shape, *padded.shape[3:])
    held = padded.gather(2, index)
    state.values[names.parts(operand, stage.level)] = torch.where(is_first[..., None, None], held, 0.0)


def _is_long(stage: GradKVStage, state: State) -> Tensor:
    """Whether a row belongs to a node whose inverted list comes in parts, ``[B, H, nodes, 1]``."""
    offsets = state.values[names.part_offsets(stage.level + 1)]
    parents = torch.arange(int(state.sizes.nodes(stage.level, "k"))) // state.plan.spec.block
    return (offsets.diff() > 0)[:, :, parents, None]


def _lists_of_inverted(level: int, state: State) -> Tensor:
    """The lists that inverted lists came from, ascending in every row, -1 at the end."""
    offsets, rows = state.values[names.offsets(level)], state.values[names.rows(level)]
    count, width = int(state.sizes.nodes(level, "q")), rows.shape[2] // int(state.sizes.nodes(level, "q"))
    lists = torch.full((*rows.shape[:2], count, width), -1)
    for entry in range(rows.shape[0]):
        for head in range(rows.shape[1]):
            nodes = torch.arange(offsets.shape[2] - 1).repeat_interleave(offsets[entry, head].diff())
            own, order = rows[entry, head, : len(nodes)].sort(stable=True)
            starts = torch.searchsorted(own, torch.arange(count))
            lists[entry, head, own, torch.arange(len(own)) - starts[own]] = nodes[order]
    return lists
