# SPDX-License-Identifier: Apache-2.0
"""The arguments of a launch of `coarsen`."""

from __future__ import annotations

from typing import cast

import torch

from llsa_gen.ir.types import Stage
from llsa_gen.ops.checks import MAX_LENGTH
from llsa_gen.ops.launch import Arguments, strides
from llsa_gen.ops.state import Run
from llsa_gen.stages import Coarsen


def bind(stage: Stage, run: Run) -> Arguments:
    """Allocates the pools at their first pass, and what carries sums to a later pass."""
    coarsen = cast(Coarsen, stage)
    spec, sizes = run.spec, run.sizes
    source = run.tensors[coarsen.source]
    width = source.shape[-1]
    name = pools_name(coarsen)
    if name not in run.tensors:
        run.tensors[name] = run.empty(sizes.starts[-1], width, run.tensors["q"].dtype)
    sums = run.tensors[name]
    if coarsen.emit_sums:
        sums = run.empty(sizes.nodes[coarsen.levels[-1] - 1], width, torch.float32)
        run.tensors[coarsen.outputs[-1]] = sums
    return {
        **run.counts,
        **strides("x", source),
        "x": source,
        "pools": run.tensors[name],
        "sums": sums,
        "length": source.shape[2],
        "tokens": sizes.length,
        "span": source_span(spec.block, coarsen.source_level, len(coarsen.levels)),
        "first": sizes.starts[coarsen.levels[0] - 1],
        "pool_rows": sizes.starts[-1],
    }


def source_span(block: int, source_level: int, levels: int) -> int:
    """Tokens below a row that a coarsening pass reads, kept so small that its top level's span fits 32 bits.

    No sequence is longer than `MAX_LENGTH`, so a node of at least that span covers all tokens whatever its exact span.
    """
    return int(min(block**source_level, MAX_LENGTH // block**levels))


def pools_name(stage: Coarsen) -> str:
    """The packed pools that a pass writes into."""
    return f"{stage.operand}_pools"
