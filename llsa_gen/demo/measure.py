# SPDX-License-Identifier: Apache-2.0
"""Measure: LLSA and dense attention on the same tensors in the same run, their times and their difference."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import llsa_gen
from llsa_gen.demo.attended import dense_weights, resolution, shares
from llsa_gen.demo.recipes import RECIPES
from llsa_gen.demo.report import HeadReport
from llsa_gen.demo.setting import BLOCK, LEVELS, TOPK

REPEATS = 3
DENSE_ROWS = 1024
"""Query rows of the dense measurement unless all are asked for: enough for the time per row to be steady."""


@dataclass(frozen=True)
class Times:
    """Median seconds of one call over all rows, and how many rows the dense one was measured on."""

    llsa: float
    select: float
    dense: float
    dense_rows: int


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """LLSA in the demo's configuration."""
    found = llsa_gen.llsa_attention(q, k, v, block_size=BLOCK, topk=TOPK, num_levels=LEVELS)
    assert isinstance(found, Tensor)
    return found


def select(q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
    """The selection in the demo's configuration, index 0 = level 1."""
    return tuple(llsa_gen.llsa_select(q, k, block_size=BLOCK, topk=TOPK, num_levels=LEVELS))


def measure_times(q: Tensor, k: Tensor, v: Tensor, *, full_dense: bool) -> Times:
    """Times LLSA, its selection and dense attention in turn.

    The caller has run `attention` and `select` once before, so that nothing is compiled here.

    Args:
        q: Queries [1, H, N, D].
        k: Keys.
        v: Values.
        full_dense: Measure the dense call once on all rows instead of scaling up from `DENSE_ROWS` of them.
    """
    tokens = q.shape[2]
    rows = tokens if full_dense else min(DENSE_ROWS, tokens)
    some = q[:, :, :: tokens // rows].contiguous()
    repeats = 1 if full_dense else REPEATS
    F.scaled_dot_product_attention(some[:, :, :BLOCK], k, v)
    calls = (lambda: attention(q, k, v), lambda: select(q, k), lambda: F.scaled_dot_product_attention(some, k, v))
    rounds = [[_seconds(call) for call in calls] for _ in range(repeats)]
    llsa, selection, dense = (statistics.median(column) for column in zip(*rounds, strict=True))
    return Times(llsa, selection, dense * tokens / rows, rows)


def compare(q: Tensor, k: Tensor, v: Tensor, o: Tensor, idx: Sequence[Tensor], rows: Tensor) -> tuple[HeadReport, ...]:
    """Compares LLSA's output with exact dense attention (fp64) in the given rows, head by head."""
    return tuple(
        _compare_head(name, q[0, head], k[0, head], v[0, head], o[0, head], [lists[0, head] for lists in idx], rows)
        for head, name in enumerate(recipe.name for recipe in RECIPES[: q.shape[1]])
    )


def _compare_head(
    name: str, q: Tensor, k: Tensor, v: Tensor, o: Tensor, lists: Sequence[Tensor], rows: Tensor
) -> HeadReport:
    weights = dense_weights(q, k, rows)
    exact = weights @ v.double()
    error = o[rows].double() - exact
    mass = shares(weights, resolution(lists, rows, k.shape[0]), len(lists))
    return HeadReport(name, float(error.abs().max()), float(error.norm() / exact.norm()), mass)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    with torch.no_grad():
        call()
    return time.perf_counter() - start
