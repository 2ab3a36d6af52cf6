# SPDX-License-Identifier: Apache-2.0
"""Kernels against the reference on small problems, forward and backward, by the error rule and the selection rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from llsa_gen.catalog import catalogue
from llsa_gen.errors import LlsaError
from llsa_gen.evidence.calls import train, upward_gradients
from llsa_gen.evidence.judge import examine
from llsa_gen.evidence.setting import Results, Setting
from llsa_gen.timing import synchronize
from llsa_gen.workloads import Qkv, clustered_qkv

LAYOUTS = ("plain", "tokens_first", "fused", "unaligned")
"""How q, k and v lie in memory: contiguous; [B,N,H,D]; slices of one tensor; with a stride that forces a copy."""


@dataclass(frozen=True)
class Problem:
    """One comparison: a spec of the catalogue and a shape."""

    name: str
    batch: int
    heads: int
    tokens: int
    layout: str = "plain"


PROBLEMS = (
    *(Problem("pixel_dit", 1, 2, 17, layout) for layout in LAYOUTS),
    Problem("pixel_dit", 2, 3, 1000, "fused"),
    Problem("pixel_dit", 1, 1, 1),
    Problem("pixel_dit", 1, 2, 4099, "tokens_first"),
    Problem("pixel_dit", 1, 1, 16384),
    Problem("pixel_dit_fp32", 2, 2, 777, "tokens_first"),
    Problem("pixel_dit_fp32", 1, 1, 5000),
    Problem("deep_video", 1, 2, 513, "fused"),
    Problem("deep_video", 1, 1, 9001),
    Problem("shallow", 1, 2, 65),
    Problem("shallow", 2, 2, 3001, "tokens_first"),
    Problem("wide_value", 1, 3, 95, "tokens_first"),
    Problem("wide_value", 2, 1, 2050, "unaligned"),
    Problem("tiny_blocks", 2, 2, 61),
    Problem("tiny_blocks", 1, 2, 1500, "fused"),
    Problem("ablation", 1, 2, 333, "tokens_first"),
    Problem("ablation", 2, 1, 2048),
)
"""The first few, one spec only, are what a dry run tries."""

TINY = 4


def work(setting: Setting) -> Results:
    """Yields one verdict per problem, then how many were right."""
    problems = PROBLEMS[:TINY] if setting.tiny else PROBLEMS
    right = 0
    for seed, problem in enumerate(problems):
        verdict = compare(problem, setting.device, seed)
        right += bool(verdict["right"])
        yield verdict
    yield {"right": right, "of": len(problems)}


def exercise(setting: Setting) -> Results:
    """Runs every kernel of the catalogue, forward and backward, on a small ragged problem; for sanitizers."""
    for entry in catalogue().values():
        tokens = 2 * entry.spec.block**2 + 3
        qkv = clustered_qkv(entry.spec, 1, 2, tokens, device=setting.device)
        train(entry.spec, qkv, upward_gradients(qkv[2]))
        synchronize(setting.device)
        yield {"ran": entry.spec.slug, "tokens": tokens}


def compare(problem: Problem, device: str, seed: int) -> dict[str, Any]:
    """The verdict about one problem; an error of a launch is a verdict too."""
    spec = catalogue()[problem.name].spec
    said = {"slug": spec.slug, "shape": [problem.batch, problem.heads, problem.tokens], "layout": problem.layout}
    try:
        drawn = clustered_qkv(spec, problem.batch, problem.heads, problem.tokens, seed=seed, device=device)
        return said | examine(spec, laid_out(drawn, problem.layout), seed=seed)
    except (LlsaError, RuntimeError) as error:
        return said | {"right": False, "why": [f"{type(error).__name__}: {error}"[:600]]}


def laid_out(qkv: Qkv, layout: str) -> Qkv:
    """The same values in another memory layout."""
    if layout == "tokens_first":
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in qkv)
    elif layout == "fused":
        widths = [x.shape[-1] for x in qkv]
        q, k, v = torch.split(torch.cat([x.transpose(1, 2) for x in qkv], -1).transpose(1, 2), widths, -1)
    elif layout == "unaligned":
        q, k, v = (torch.nn.functional.pad(x, (1, 0))[..., 1:] for x in qkv)
    else:
        q, k, v = (x.contiguous() for x in qkv)
    return q, k, v
