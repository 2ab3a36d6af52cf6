# SPDX-License-Identifier: Apache-2.0
"""The arguments of a launch of `select`."""

from __future__ import annotations

from typing import cast

import torch

from llsa_gen.ir.types import Stage
from llsa_gen.ops.launch import Arguments
from llsa_gen.ops.state import Run
from llsa_gen.stages import Select


def bind(stage: Stage, run: Run) -> Arguments:
    """Allocates the lists of a level."""
    select = cast(Select, stage)
    sizes, level = run.sizes, select.level
    found = run.empty(sizes.nodes[level - 1], run.spec.topks[level - 1], torch.int32)
    run.tensors[f"idx{level}"] = found
    return {
        **run.counts,
        "q_pools": run.tensors["q_pools"],
        "k_pools": run.tensors["k_pools"],
        "parents": run.tensors[f"idx{level + 1}"] if select.candidates == "children" else found,
        "idx": found,
        "nodes_q": found.shape[2],
        "nodes_k": found.shape[2],
        "q_rows": sizes.starts[-1],
        "k_rows": sizes.starts[-1],
        "first_q": sizes.starts[level - 1],
        "first_k": sizes.starts[level - 1],
    }
