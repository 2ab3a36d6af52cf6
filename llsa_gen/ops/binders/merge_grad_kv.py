# SPDX-License-Identifier: Apache-2.0
"""The arguments of a launch of `merge_grad_kv`."""

from __future__ import annotations

from typing import cast

from torch import Tensor

from llsa_gen.ir import names
from llsa_gen.ir.types import Stage
from llsa_gen.ops.binders.attend_grad_kv import above, caller_strides, gradients, level_numbers
from llsa_gen.ops.checks import MAX_LENGTH
from llsa_gen.ops.launch import Arguments
from llsa_gen.ops.state import Run
from llsa_gen.stages import MergeGradKV


def bind(stage: Stage, run: Run) -> Arguments:
    """Allocates the gradients of the coarsest level; others are there already, with the nodes of short lists."""
    merge = cast(MergeGradKV, stage)
    written = gradients(merge, run) if merge.part == "all" else _begun(merge, run)
    return {
        **run.counts,
        **written,
        **{f"{operand}_parts": run.tensors[names.parts(operand, merge.level)] for operand in ("k", "v")},
        **above(merge, run),
        **({} if merge.level else caller_strides(written)),
        **level_numbers(run, merge.level),
        **({} if merge.part == "all" else _tables(merge, run)),
        "places": run.sizes.length,
        "span": min(run.spec.block**merge.level, MAX_LENGTH),  # a larger one covers every token: the tail says how many
    }


def _begun(stage: MergeGradKV, run: Run) -> dict[str, Tensor]:
    return {f"{operand}_grad": run.tensors[names.gradient(operand, stage.level)] for operand in ("k", "v")}


def _tables(stage: MergeGradKV, run: Run) -> Arguments:
    """How the inverted lists of the parents are cut."""
    up = stage.level + 1
    part_nodes = run.tensors[names.part_nodes(up)]
    return {
        "part_offsets": run.tensors[names.part_offsets(up)],
        "part_nodes": part_nodes,
        "parents": run.sizes.nodes[stage.level],
        "parts": part_nodes.shape[2],
    }
