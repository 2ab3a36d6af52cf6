# SPDX-License-Identifier: Apache-2.0
"""The arguments of a launch of `attend`, and what every kernel over segments of keys takes."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from llsa_gen.ir import names
from llsa_gen.ir.types import Stage
from llsa_gen.ops.launch import Arguments, strides
from llsa_gen.ops.state import Run
from llsa_gen.stages import Attend, SegmentStage
from llsa_gen.stages.attend import list_levels


def bind(stage: Stage, run: Run) -> Arguments:
    """Allocates the output, or the carry of a stage that is not the last."""
    attend = cast(Attend, stage)
    o = new_rows(run, run.tensors["v"].shape[-1], final=attend.final)
    lse = torch.empty(o.shape[:3], dtype=torch.float32, device=o.device)
    carried = {name: run.tensors[name] for name in ("o_carry", "lse_carry") if attend.carry}
    run.tensors.update(dict(zip(attend.outputs, (o, lse), strict=True)))
    return {**segment_arguments(attend, run), **strides("o", o), **carried, "o": o, "lse": lse}


def segment_arguments(stage: SegmentStage, run: Run) -> dict[str, Tensor | int | float]:
    """Queries, keys and values, lists and sizes; a stage over pooled keys and tokens has the pools beside those."""
    q = run.tensors["q"]
    keys, values = (run.tensors[names.pools(x) if stage.part == "coarse" else x] for x in ("k", "v"))
    pools = {name: run.tensors[name] for name in stage.pools_beside}
    levels = list_levels(stage.segments, run.spec.enrichment)
    return {
        **run.counts,
        **strides("q", q),
        **strides("k", keys),
        **strides("v", values),
        **{f"idx_{level}": run.tensors[f"idx{level}"] for level in levels},
        **run.sizes.numbers,
        **pools,
        **({"pool_places": pools["k_pools"].shape[2]} if pools else {}),
        "q": q,
        "k": keys,
        "v": values,
        "places": keys.shape[2],
        "scale": run.scale,
    }


def new_rows(run: Run, width: int, *, final: bool) -> Tensor:
    """A new [B,H,N,width] tensor, in the memory order that the caller wants, or a carried fp32 one."""
    q = run.tensors["q"]
    if not final or not run.tokens_first:
        return run.empty(q.shape[2], width, q.dtype if final else torch.float32)
    shape = (q.shape[0], q.shape[2], q.shape[1], width)
    return torch.empty(shape, dtype=q.dtype, device=q.device).transpose(1, 2)
