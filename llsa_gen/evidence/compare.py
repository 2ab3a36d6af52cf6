# SPDX-License-Identifier: Apache-2.0
"""Kernels against the reference on small problems, by the error rule and the selection rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from llsa_gen import llsa_attention, llsa_select, reference
from llsa_gen.catalog import catalogue
from llsa_gen.errors import LlsaError
from llsa_gen.evidence.record import finite
from llsa_gen.evidence.setting import Results, Setting
from llsa_gen.spec import Spec
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

TINY = 5


def work(setting: Setting) -> Results:
    """Yields one verdict per problem, then how many were right."""
    problems = PROBLEMS[: TINY - 1] if setting.tiny else PROBLEMS
    right = 0
    for seed, problem in enumerate(problems):
        verdict = compare(problem, setting.device, seed)
        right += bool(verdict["right"])
        yield verdict
    yield {"right": right, "of": len(problems)}


def exercise(setting: Setting) -> Results:
    """Runs every kernel of the catalogue once on a small ragged problem and judges nothing: for sanitizers."""
    for entry in catalogue().values():
        q, k, v = clustered_qkv(entry.spec, 1, 2, 2 * entry.spec.block**2 + 3, device=setting.device)
        attention(entry.spec, q, k, v)
        if setting.device == "cuda":
            torch.cuda.synchronize()
        yield {"ran": entry.spec.slug, "tokens": q.shape[2]}


@torch.no_grad()
def compare(problem: Problem, device: str, seed: int) -> dict[str, Any]:
    """The verdict about one problem; an error of a launch is a verdict too."""
    spec = catalogue()[problem.name].spec
    said = {"slug": spec.slug, "shape": [problem.batch, problem.heads, problem.tokens], "layout": problem.layout}
    try:
        drawn = clustered_qkv(spec, problem.batch, problem.heads, problem.tokens, seed=seed, device=device)
        q, k, v = laid_out(drawn, problem.layout)
        idx = select(spec, q, k)
        judged = judge(spec, (q, k, v), idx, attention(spec, q, k, v))
    except (LlsaError, RuntimeError) as error:
        return said | {"right": False, "why": [f"{type(error).__name__}: {error}"[:600]]}
    return said | judged


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


def attention(spec: Spec, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """`(o, lse)` of the public function for the fields of a spec."""
    return llsa_attention(
        q,
        k,
        v,
        block_size=spec.block,
        topk=spec.topks,
        num_levels=spec.depth,
        enrichment=spec.enrichment,
        weight=spec.weight,
        return_lse=True,
    )


def select(spec: Spec, q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
    """The lists of the public function for the fields of a spec."""
    return llsa_select(q, k, block_size=spec.block, topk=spec.topks, num_levels=spec.depth)


def judge(
    spec: Spec, qkv: Qkv, idx: tuple[Tensor, ...], result: tuple[Tensor, Tensor], *, selection: bool = True
) -> dict[str, Any]:
    """Judges lists, o and lse; ``o_ratio`` is the distance to fp64 as a multiple of plain torch's in the same dtype."""
    q, k, v = qkv
    why: list[str] = []
    if selection:
        _note(why, partial(reference.assert_same_selection, idx, q, k, spec))
    exact = reference.attend(q, k, v, idx, spec)
    plain = reference.native(q, k, v, idx, spec)
    sizes = reference.rounding_magnitude(q, k, v, idx, spec)
    for label, found, true, near, size in zip(("o", "lse"), result, exact, plain, sizes, strict=True):
        _note(why, partial(reference.assert_close_by_rule, found, true, near, magnitude=size, label=label))
    mine, native = (float((x.double() - exact[0]).abs().max()) for x in (result[0], plain[0]))
    return {"right": not why, "why": why, "o_error": finite(mine), "o_ratio": finite(mine / native) if native else None}


def _note(why: list[str], check: Callable[[], None]) -> None:
    try:
        check()
    except AssertionError as error:
        why.append(str(error)[:600])
