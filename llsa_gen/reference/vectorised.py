# SPDX-License-Identifier: Apache-2.0
"""The mathematics as torch tensors: any device, any dtype, with autograd, in memory linear in the attended keys.

The b queries of one fine block attend the same multiset of keys, so everything works on rows of fine blocks: each row
gathers its keys once from one table that holds the tokens and all pools. The outputs are not rounded back to the
input dtype; they stay in `compute_dtype`, which is what an error is measured against.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from llsa_gen.reference.layout import Shape, check_lists, check_tensors, covered, node_count, resolve_scale, span
from llsa_gen.spec import Spec

CHUNK_ELEMENTS = 1 << 22
"""Gathered elements alive at once; bounds the memory, never the result."""


def pool(x: Tensor, spec: Spec, *, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
    """Return the mean pools of x [B,H,N,D] for levels 1..L, each [B,H,n_l,D] and of x's dtype.

    Every level is summed from the tokens in fp32 (fp64 for fp64 tokens) and rounded once.

    Args:
        x: tokens.
        spec: gives block and depth.
        dtype: the precision the pools are stored in; x's own by default. With fp64 tokens and a lower `dtype` the
            values are rounded but the gradient passes unrounded, which gives exact gradients of rounded pools.
    """
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    tokens = x.to(wide)
    means = (_means(tokens, span(spec.block, level)) for level in range(1, spec.depth + 1))
    if dtype is None or dtype == x.dtype:
        return tuple(mean.to(x.dtype) for mean in means)
    return tuple(_round_through(mean, dtype).to(x.dtype) for mean in means)


def select(q: Tensor, k: Tensor, spec: Spec, *, compute_dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Return the selected nodes of levels 1..L, int32 [B,H,n_l,K_l], best first, -1 at the end.

    Scores accumulate in fp64, or in fp32 when `compute_dtype` is anything narrower.

    Raises:
        InputError: tensors that do not fit.
        UnsupportedError: grouped heads, or different query and key lengths.
    """
    check_tensors(q, k)
    with torch.no_grad():
        return select_from_pools(pool(q, spec), pool(k, spec), spec, compute_dtype=compute_dtype)


@torch.no_grad()
def select_from_pools(
    q_pools: Sequence[Tensor], k_pools: Sequence[Tensor], spec: Spec, *, compute_dtype: torch.dtype = torch.float64
) -> tuple[Tensor, ...]:
    """Return the selection of given pools (levels 1..L), coarsest level first decided, finest first returned."""
    wide = torch.float64 if compute_dtype == torch.float64 else torch.float32
    lists: list[Tensor] = []
    for level in range(spec.depth, 0, -1):
        queries, keys = q_pools[level - 1].to(wide), k_pools[level - 1].to(wide)
        groups, nodes = -(-queries.shape[2] // spec.block), keys.shape[2]
        if level == spec.depth:
            everything = torch.arange(nodes, device=keys.device)
            candidates = everything.expand(*queries.shape[:2], groups, nodes)
        else:
            parents = lists[-1].long()
            above = k_pools[level].shape[2]
            ordered = parents.masked_fill(parents < 0, above).sort(-1).values[..., :above]
            candidates = _children(ordered, spec.block, nodes)
        lists.append(_best(queries, keys, candidates, spec.topks[level - 1], spec.block))
    return tuple(reversed(lists))


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    idx: Sequence[Tensor],
    spec: Spec,
    *,
    scale: float | None = None,
    compute_dtype: torch.dtype = torch.float64,
    pool_dtype: torch.dtype | None = None,
    rows: slice | None = None,
) -> tuple[Tensor, Tensor]:
    """Return `(o [B,H,N,Dv], lse [B,H,N])` of attention with given lists, both in `compute_dtype`.

    Lists may hold -1 anywhere and duplicates (a duplicate counts twice). A query that attends nothing, or whose
    weights sum to zero, has `o = 0` and `lse = -inf`. Gradients reach q, k and v through the attended keys and values,
    the coarse ones through the pools.

    Args:
        q: queries [B,H,N,D].
        k: keys [B,H,N,D].
        v: values [B,H,N,Dv].
        idx: lists of levels 1..L, integer [B,H,n_l,K].
        spec: gives block, depth, enrichment and level weights.
        scale: softmax scale, `1 / sqrt(D)` by default.
        compute_dtype: the dtype of logits, softmax and output.
        pool_dtype: see `pool`.
        rows: the fine blocks of queries to compute, all of them by default; the results then hold only their tokens.

    Raises:
        InputError: tensors or lists that do not fit, or a scale that is not positive.
        UnsupportedError: grouped heads, or different query and key lengths.
    """
    shape = check_tensors(q, k, v)
    check_lists(idx, shape, spec)
    factor = resolve_scale(scale, shape.dim)
    if shape.queries == 0 or shape.batch * shape.heads == 0:
        empty = torch.zeros(*q.shape[:3], shape.value_dim, dtype=compute_dtype, device=q.device)
        return empty, empty.sum(-1)
    lists = [_without_empty_columns(entries) for entries in idx]
    table = _table(k, v, spec, compute_dtype, pool_dtype)
    blocks = node_count(shape.queries, spec.block, 1)
    first, end, _ = (rows or slice(None)).indices(blocks)
    queries = _grouped(q.to(compute_dtype), blocks, spec.block)
    output, lse = _attend_rows(queries, table, lists, slice(first, end), shape, spec, factor)
    tokens = min(shape.queries, end * spec.block) - first * spec.block
    return output[:, :, :tokens], lse[:, :, :tokens]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    spec: Spec,
    *,
    scale: float | None = None,
    compute_dtype: torch.dtype = torch.float64,
    pool_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Return `(o, lse, idx)`: pools, selection and attention in one call. Arguments and errors as `attend`."""
    check_tensors(q, k, v)
    with torch.no_grad():
        q_pools, k_pools = (pool(x, spec, dtype=pool_dtype) for x in (q, k))
        idx = select_from_pools(q_pools, k_pools, spec, compute_dtype=compute_dtype)
    return *attend(q, k, v, idx, spec, scale=scale, compute_dtype=compute_dtype, pool_dtype=pool_dtype), idx


class _RoundThrough(torch.autograd.Function):
    """Rounding to a narrower dtype and back whose gradient is the identity."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, dtype: torch.dtype) -> Tensor:
        return x.to(dtype).to(x.dtype)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def _round_through(x: Tensor, dtype: torch.dtype) -> Tensor:
    rounded: Tensor = _RoundThrough.apply(x, dtype)  # type: ignore[no-untyped-call]
    return rounded


def _means(tokens: Tensor, width: int) -> Tensor:
    """Mean over runs of `width` tokens; the last run may be shorter."""
    length = tokens.shape[2]
    width = min(width, max(length, 1))
    nodes = -(-length // width)
    runs = _grouped(tokens, nodes, width)
    counts = torch.full((nodes,), float(width), dtype=tokens.dtype, device=tokens.device)
    if nodes:
        counts[-1] = length - (nodes - 1) * width
    return runs.sum(3) / counts[:, None]


def _grouped(x: Tensor, groups: int, size: int) -> Tensor:
    """Cut [B,H,N,D] into [B,H,groups,size,D], with zeros behind the end."""
    return F.pad(x, (0, 0, 0, groups * size - x.shape[2])).reshape(*x.shape[:2], groups, size, x.shape[-1])


def _children(parents: Tensor, block: int, count: int) -> Tensor:
    """Ids of the children of `parents` [..., K] as [..., K * block]; those that do not exist are >= count or < 0."""
    offsets = torch.arange(block, device=parents.device)
    ids = (parents.long()[..., None] * block + offsets).flatten(-2)
    return ids.masked_fill((ids < 0) | (ids >= count), count)


def _best(queries: Tensor, keys: Tensor, candidates: Tensor, topk: int, block: int) -> Tensor:
    """Take the best `topk` candidates of every query row, block rows sharing one line of ascending candidates."""
    batch, heads, rows, _ = queries.shape
    groups, width = candidates.shape[2:]
    taken = min(topk, width)
    chosen = torch.full((batch, heads, groups * block, topk), -1, dtype=torch.int32, device=queries.device)
    grouped = _grouped(queries, groups, block)
    for chunk in _chunks(slice(0, groups), batch * heads * width * (block + queries.shape[-1])):
        ids = candidates[:, :, chunk]
        missing = ids >= keys.shape[2]
        gathered = _take(keys, ids.clamp(max=keys.shape[2] - 1))
        scores = _scores(grouped[:, :, chunk], gathered).masked_fill(missing[..., None, :], -math.inf)
        # Ascending ids and a stable sort give ties to the lowest id, and put missing ones behind every real -inf.
        order = scores.sort(dim=-1, descending=True, stable=True).indices[..., :taken]
        best = ids.masked_fill(missing, -1)[..., None, :].expand_as(scores).gather(-1, order)
        chosen[:, :, chunk.start * block : chunk.stop * block, :taken] = best.flatten(2, 3).int()
    return chosen[:, :, :rows]


def _scores(queries: Tensor, keys: Tensor) -> Tensor:
    """Dot products of [..., b, D] with [..., C, D], summed one component after the other; NaN becomes -inf.

    A matmul may sum equal rows in different orders depending on their place, which would break exact ties.
    """
    scores = queries.new_zeros(*queries.shape[:-1], keys.shape[-2])
    for component in range(queries.shape[-1]):
        scores += queries[..., :, None, component] * keys[..., None, :, component]
    return scores.masked_fill(scores.isnan(), -math.inf)


@dataclass(frozen=True)
class _Table:
    """Tokens and pools of all levels behind each other: keys, values and logarithms of the weights."""

    keys: Tensor
    values: Tensor
    log_weights: Tensor


def _table(k: Tensor, v: Tensor, spec: Spec, dtype: torch.dtype, pool_dtype: torch.dtype | None) -> _Table:
    keys, values = (
        torch.cat([level.to(dtype) for level in (x, *pool(x, spec, dtype=pool_dtype))], dim=2) for x in (k, v)
    )
    length = k.shape[2]
    logs = [0.0] * length
    for level in range(1, spec.depth + 1):
        nodes = node_count(length, spec.block, level)
        full = math.log(spec.level_weight(level, covered(0, length, spec.block, level)))
        last = math.log(spec.level_weight(level, covered(nodes - 1, length, spec.block, level)))
        logs += [full] * (nodes - 1) + [last]
    return _Table(keys, values, torch.tensor(logs, dtype=torch.float64, device=k.device).to(dtype))


def _without_empty_columns(entries: Tensor) -> Tensor:
    """Drop the columns of a list in which no row has an entry (one stays): a K beyond the candidates costs nothing."""
    used = (entries >= 0).flatten(0, 2).any(0)
    used[0] = True
    return entries[..., used]


def _members(idx: Sequence[Tensor], rows: slice, shape: Shape, spec: Spec) -> Tensor:
    """Places in the table of all keys that each fine row attends, [B,H,rows,S]; -1 marks a missing one."""
    lines = torch.arange(rows.start, rows.stop, device=idx[0].device)
    counts = [node_count(shape.keys, spec.block, level) for level in range(spec.depth + 1)]
    found = []
    for level in _attended_levels(spec):
        if level == spec.depth:
            nodes = torch.arange(counts[level], device=lines.device).expand(shape.batch, shape.heads, len(lines), -1)
        else:
            nodes = _children(idx[level][:, :, lines // spec.block**level], spec.block, counts[level])
        absent = nodes >= counts[level]
        if level and spec.enrichment == "exclude_refined":
            refined = idx[level - 1][:, :, lines // spec.block ** (level - 1)]
            absent = absent | (nodes[..., None] == refined[..., None, :]).any(-1)
        found.append((nodes + sum(counts[:level])).masked_fill(absent, -1))
    return torch.cat(found, -1)


def _attended_levels(spec: Spec) -> Iterator[int]:
    """Levels whose nodes are attended, coarsest first."""
    return iter((0,)) if spec.enrichment == "none" else iter(range(spec.depth, -1, -1))


def _members_per_row(idx: Sequence[Tensor], shape: Shape, spec: Spec) -> int:
    coarsest = node_count(shape.keys, spec.block, spec.depth)
    widths = (
        coarsest if level == spec.depth else idx[level].shape[-1] * spec.block for level in _attended_levels(spec)
    )
    return sum(widths)


def _attend_rows(
    queries: Tensor, table: _Table, lists: Sequence[Tensor], rows: slice, shape: Shape, spec: Spec, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention of some fine rows of queries [B,H,n_1,b,D], a chunk of them at a time; whole blocks of tokens."""
    attend_members = partial(_attend_members, table=table, scale=scale)
    outputs, sums = [], []
    gathered = _members_per_row(lists, shape, spec) * (shape.dim + shape.value_dim)
    for chunk in _chunks(rows, shape.batch * shape.heads * gathered):
        output, lse = _recompute(attend_members, queries[:, :, chunk], _members(lists, chunk, shape, spec))
        outputs.append(output.flatten(2, 3))
        sums.append(lse.flatten(2, 3))
    return torch.cat(outputs, 2), torch.cat(sums, 2)


def _attend_members(queries: Tensor, members: Tensor, *, table: _Table, scale: float) -> tuple[Tensor, Tensor]:
    """Softmax attention of queries [B,H,R,b,D] with the members of their row."""
    absent = members < 0
    places = members.clamp(min=0)
    keys = _take(table.keys, places)
    values = _take(table.values, places).masked_fill(absent[..., None], 0.0)
    logits = queries @ keys.transpose(-1, -2) * scale + table.log_weights[places][..., None, :]
    logits = logits.masked_fill(absent[..., None, :], -math.inf)
    top = logits.detach().amax(-1)
    empty = top == -math.inf
    logits = logits.masked_fill(empty[..., None], 0.0)
    output = (logits.softmax(-1) @ values).masked_fill(empty[..., None], 0.0)
    # A logit of +inf leaves the softmax without a meaning: it is NaN there, and so is its normaliser.
    lse = logits.logsumexp(-1).masked_fill(empty, -math.inf).masked_fill(top == math.inf, math.nan)
    return output, lse


def _take(source: Tensor, places: Tensor) -> Tensor:
    """Gather rows of source [B,H,T,D] at places [B,H,R,S] as [B,H,R,S,D]."""
    flat = places.flatten(2)[..., None].expand(-1, -1, -1, source.shape[-1])
    return source.gather(2, flat).reshape(*places.shape, source.shape[-1])


def _chunks(rows: slice, elements_per_row: int) -> Iterator[slice]:
    step = max(1, CHUNK_ELEMENTS // max(1, elements_per_row))
    return (slice(start, min(start + step, rows.stop)) for start in range(rows.start, rows.stop, step))


def _recompute(function: Callable[..., tuple[Tensor, Tensor]], *inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Call `function`; under autograd keep only its inputs and compute it again in the backward pass."""
    if not torch.is_grad_enabled():
        return function(*inputs)
    result: tuple[Tensor, Tensor] = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return result
