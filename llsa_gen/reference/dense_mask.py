# SPDX-License-Identifier: Apache-2.0
"""The same attention as one dense softmax: every node of every level is a key, `ln` of its weight is the mask.

A node that a query attends m times with weight w gets `ln w + ln m` on its logit; one it does not attend gets -inf.
Quadratic, for finite inputs (a key that is masked still multiplies its value by zero), differentiable.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from llsa_gen.reference.layout import Shape, check_lists, check_tensors, covered, node_count, resolve_scale, span
from llsa_gen.spec import Spec


def multiplicity(idx: Sequence[Tensor], shape: Shape, spec: Spec) -> tuple[Tensor, ...]:
    """Return how often each query attends each node, fp64 [B,H,Nq,n_l] for l = 0..L."""
    block = spec.block
    tokens = torch.arange(shape.queries, device=idx[0].device)
    counts = [node_count(shape.keys, block, level) for level in range(spec.depth + 1)]
    selected = [_occurrences(entries, count) for entries, count in zip(idx, counts[1:], strict=True)]
    found = []
    for level in range(spec.depth + 1):
        nodes = torch.arange(counts[level], device=tokens.device)
        if level == spec.depth:
            times = torch.ones(*idx[0].shape[:2], len(tokens), len(nodes), dtype=torch.float64, device=tokens.device)
        else:
            times = selected[level][:, :, tokens // block ** (level + 1)][..., nodes // block]
        if level and spec.enrichment == "none":
            times = torch.zeros_like(times)
        if level and spec.enrichment == "exclude_refined":
            times = times * (selected[level - 1][:, :, tokens // block**level] == 0)
        found.append(times)
    return tuple(found)


def attend(
    q: Tensor, k: Tensor, v: Tensor, idx: Sequence[Tensor], spec: Spec, *, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Return `(o [B,H,N,Dv], lse [B,H,N])` in fp64 of attention with given lists.

    Raises:
        InputError: tensors or lists that do not fit.
        UnsupportedError: grouped heads, or different query and key lengths.
    """
    shape = check_tensors(q, k, v)
    check_lists(idx, shape, spec)
    times = torch.cat(multiplicity(idx, shape, spec), -1)
    mask = times.log() + _log_weights(shape, spec, k.device)
    keys, values = (
        torch.cat([_pooled(x, span(spec.block, level)) for level in range(spec.depth + 1)], 2) for x in (k, v)
    )
    logits = torch.einsum("bhid,bhjd->bhij", q.double(), keys) * resolve_scale(scale, shape.dim) + mask
    alive = (logits > -torch.inf).any(-1)
    weights = torch.softmax(logits.where(alive[..., None], 0.0), -1) * alive[..., None]
    return weights @ values, torch.logsumexp(logits.where(alive[..., None], 0.0), -1).where(alive, -torch.inf)


def _occurrences(entries: Tensor, nodes: int) -> Tensor:
    """Count each id in each row of a list, -1 left out: fp64 [B,H,rows,nodes]."""
    counts = torch.zeros(*entries.shape[:3], nodes + 1, dtype=torch.float64, device=entries.device)
    ids = entries.long()
    return counts.scatter_add(-1, ids.where(ids >= 0, nodes), torch.ones_like(ids, dtype=torch.float64))[..., :nodes]


def _log_weights(shape: Shape, spec: Spec, device: torch.device) -> Tensor:
    weights = [1.0] * shape.keys
    for level in range(1, spec.depth + 1):
        counts = (covered(j, shape.keys, spec.block, level) for j in range(node_count(shape.keys, spec.block, level)))
        weights += [spec.level_weight(level, count) for count in counts]
    return torch.tensor(weights, dtype=torch.float64, device=device).log()


def _pooled(x: Tensor, width: int) -> Tensor:
    """Means over runs of `width` tokens in x's own precision, as fp64; the tokens themselves for width 1."""
    if x.shape[2] == 0:
        return x.double()
    wide = x if x.dtype == torch.float64 else x.float()
    return torch.stack([run.mean(2) for run in torch.split(wide, width, 2)], 2).to(x.dtype).double()
