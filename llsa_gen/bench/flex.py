# SPDX-License-Identifier: Apache-2.0
"""FlexAttention over the same keys: tokens and pooled nodes behind each other, and lists as its block mask.

It gets lists, pools and mask for nothing and only attends. Its mask wants room for every pair of blocks, which is
quadratic, so that long sequences are left out; and on a CPU it has no gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from llsa_gen import reference
from llsa_gen.bench.judge import Sample
from llsa_gen.evidence.calls import select
from llsa_gen.spec import Spec
from llsa_gen.workloads import Qkv

MOST_BYTES = 1 << 30
"""Most bytes of a mask."""
COMPLETE = "overlap"
"""The enrichment whose attended keys are whole blocks."""


def flex_call(spec: Spec, qkv: Qkv) -> Callable[[], Tensor] | str:
    """A call that gives o, compiled on its first run, or why there is none."""
    q, k, v = qkv
    if spec.enrichment != COMPLETE:
        return f"enrichment {spec.enrichment} is no mask of whole blocks"
    starts, total = _starts(spec, q.shape[2])
    rows = -(-q.shape[2] // spec.block)
    needed = 4 * q.shape[0] * q.shape[1] * rows * (total // spec.block)
    if needed > MOST_BYTES:
        return f"its block mask would take {needed / 2**30:.1f} GiB"
    keys, values = (_packed(spec, x) for x in (k, v))
    weights = _log_weights(spec, q.shape[2], total)
    places, counts = _blocks(spec, select(spec, q, k), rows, starts, q.shape[2])
    return _compiled(spec, (q, keys, values), weights, places, counts)


def right(sample: Sample, o: Tensor) -> list[str]:
    """What is wrong with its output for the first head."""
    with torch.no_grad():
        lse = torch.zeros(1, 1, o.shape[2])
        lse[:, :, sample.tokens] = sample.attend(sample.qkv)[1].float()
    return sample.judge((o, lse))


def _compiled(spec: Spec, qkv: Qkv, weights: Tensor, places: Tensor, counts: Tensor) -> Callable[[], Tensor]:
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    q, keys, values = qkv
    padded = F.pad(places, (0, keys.shape[2] // spec.block - places.shape[-1]))
    mask = BlockMask.from_kv_blocks(
        counts,
        padded,
        BLOCK_SIZE=(spec.block, spec.block),
        seq_lengths=(q.shape[2], keys.shape[2]),
        compute_q_blocks=False,
    )

    def weigh(score: Tensor, _batch: Tensor, _head: Tensor, _query: Tensor, key: Tensor) -> Tensor:
        return score + weights[key]

    attend: Any = torch.compile(flex_attention, dynamic=True)

    def call() -> Tensor:
        found: Tensor = attend(q, keys, values, score_mod=weigh, block_mask=mask)
        return found

    return call


def _starts(spec: Spec, tokens: int) -> tuple[list[int], int]:
    """Where the nodes of each level begin, whole blocks for each, level 0 first, and where they end."""
    starts, end = [], 0
    for level in range(spec.depth + 1):
        starts.append(end)
        end += -(-_count(spec, tokens, level) // spec.block) * spec.block
    return starts, end


def _count(spec: Spec, tokens: int, level: int) -> int:
    return reference.node_count(tokens, spec.block, level)


def _packed(spec: Spec, x: Tensor) -> Tensor:
    """Tokens and pools of every level, each filled up with zeros to whole blocks."""
    levels = (x, *reference.pool(x, spec))
    return torch.cat([F.pad(level, (0, 0, 0, -level.shape[2] % spec.block)) for level in levels], 2)


def _log_weights(spec: Spec, tokens: int, total: int) -> Tensor:
    """ln of the weight of every row, -inf for the rows that fill up."""
    weights = torch.full((total,), -math.inf)
    for level, start in enumerate(_starts(spec, tokens)[0]):
        count, width = _count(spec, tokens, level), spec.block**level
        last = tokens - (count - 1) * width
        weights[start : start + count] = math.log(spec.level_weight(level, width)) if level and count > 1 else 0.0
        weights[start + count - 1] = math.log(spec.level_weight(level, last)) if level else 0.0
    return weights


def _blocks(spec: Spec, idx: tuple[Tensor, ...], rows: int, starts: list[int], tokens: int) -> tuple[Tensor, Tensor]:
    """For every block of queries the blocks of keys, those that exist first, and their number."""
    lines = torch.arange(rows)
    found = []
    for level in range(spec.depth):
        chosen = idx[level][:, :, lines // spec.block**level]
        found.append(torch.where(chosen < 0, chosen, chosen + starts[level] // spec.block))
    whole = torch.arange(-(-_count(spec, tokens, spec.depth) // spec.block)) + starts[spec.depth] // spec.block
    found.append(whole.expand(*found[0].shape[:3], -1))
    places = torch.cat(found, -1)
    order = (places < 0).int().argsort(dim=-1, stable=True)
    return places.gather(-1, order).clamp(min=0).int(), (places >= 0).sum(-1).int()
