# SPDX-License-Identifier: Apache-2.0
"""The arguments of a launch of `attend_grad_kv`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor

from llsa_gen.ir import names
from llsa_gen.ir.sizes import query_splits
from llsa_gen.ir.types import Stage
from llsa_gen.ops.launch import Arguments, strides
from llsa_gen.ops.state import Run
from llsa_gen.stages import AttendGradKV, GradKVStage


def bind(stage: Stage, run: Run) -> Arguments:
    """Allocates the gradients of the level and the parts of long work."""
    grad = cast(AttendGradKV, stage)
    operands = {operand: run.tensors[f"{operand}_pools" if grad.level else operand] for operand in ("k", "v")}
    read: dict[str, Tensor] = {name: run.tensors[name] for name in ("q", "o_grad", "lse", names.DELTA)}
    lists = {"idx": run.tensors[names.lists(grad.level)]} if names.lists(grad.level) in grad.inputs else {}
    return {
        **run.counts,
        **read,
        **operands,
        **lists,
        **caller_strides({"q": run.tensors["q"], "o_grad": run.tensors["o_grad"], **operands}),
        **level_numbers(run, grad.level),
        **(_pieces(grad, run) if grad.part == "all" else _listed(grad, run)),
        "places": operands["k"].shape[2],
        "scale": run.scale,
    }


def gradients(stage: GradKVStage, run: Run) -> dict[str, Tensor]:
    """New tensors for what a level gets: fp32 by node, or those of the caller in the memory order that he wants."""
    found = {}
    for operand, piece in zip(("k", "v"), stage.gradients, strict=True):
        width = _width(run, operand)
        if stage.level:
            run.tensors[piece.tensor] = run.empty(run.sizes.nodes[stage.level - 1], width, torch.float32)
        else:
            run.tensors[piece.tensor] = _returned(run, width)
        found[f"{operand}_grad"] = run.tensors[piece.tensor]
    return found


def level_numbers(run: Run, level: int) -> dict[str, int | float]:
    """Where the rows of a level lie and how many there are; what sets its last node apart."""
    if not level:
        return {"len_q": run.sizes.length, "nodes": run.sizes.length}
    nodes = run.sizes.nodes[level - 1]
    return {
        "len_q": run.sizes.length,
        "nodes": nodes,
        "nodes_q": nodes,
        "base": run.sizes.starts[level - 1],
        "tail_pull": run.sizes.numbers[f"tail_pull_{level}"],
        "tail_tokens": run.sizes.length - (nodes - 1) * run.spec.block**level,
    }


def _pieces(stage: AttendGradKV, run: Run) -> dict[str, Tensor]:
    """Sums by piece of the queries."""
    extents = (query_splits(run.spec), run.sizes.nodes[stage.level - 1])
    return _parts(stage, run, extents)


def _listed(stage: AttendGradKV, run: Run) -> Arguments:
    """The inverted lists of the parents, how they are cut, and what is written."""
    up = stage.level + 1
    part_nodes = run.tensors[names.part_nodes(up)]
    takers = run.tensors[names.rows(up)].flatten(2)
    written = gradients(stage, run)
    return {
        **above(stage, run),
        **written,
        **({} if stage.level else caller_strides(written)),
        **_parts(stage, run, (part_nodes.shape[2], run.spec.block)),
        "offsets": run.tensors[names.offsets(up)],
        "takers": takers,
        "part_offsets": run.tensors[names.part_offsets(up)],
        "part_nodes": part_nodes,
        "parents": run.sizes.nodes[stage.level],
        "parts": part_nodes.shape[2],
        "listed": takers.shape[2],
    }


def above(stage: GradKVStage, run: Run) -> dict[str, Tensor]:
    """What the level above passes on."""
    return {
        f"{operand}_above": run.tensors[piece.tensor] for operand, piece in zip(("k", "v"), stage.above, strict=False)
    }


def caller_strides(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The stride arguments of some tensors of the caller."""
    return {key: value for name, tensor in tensors.items() for key, value in strides(name, tensor).items()}


def _parts(stage: AttendGradKV, run: Run, extents: tuple[int, int]) -> dict[str, Tensor]:
    """New tensors for partial sums: so many parts of so many rows."""
    counts, found = run.counts, {}
    for operand, piece in zip(("k", "v"), stage.parts, strict=True):
        shape = (counts["batch"], counts["heads"], *extents, _width(run, operand))
        run.tensors[piece.tensor] = run.tensors["q"].new_empty(shape, dtype=torch.float32)
        found[f"{operand}_parts"] = run.tensors[piece.tensor]
    return found


def _width(run: Run, operand: str) -> int:
    return run.spec.dim_v if operand == "v" else run.spec.head_dim


def _returned(run: Run, width: int) -> Tensor:
    """A new tensor like k or v, as the caller wants o to lie in memory."""
    q = run.tensors["q"]
    if not run.tokens_first:
        return run.empty(q.shape[2], width, q.dtype)
    return q.new_empty((q.shape[0], q.shape[2], q.shape[1], width)).transpose(1, 2)
