# SPDX-License-Identifier: Apache-2.0
"""The mathematics as plain Python loops in fp64: slow, tiny, and meant to be read beside the definition.

One head is a list of rows of floats. A pyramid holds such a list per level, level 0 being the tokens; `lists[l - 1]`
holds, for every level-l query node, the ids of the level-l key nodes it selected, -1 where there are no more.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from llsa_gen.reference.layout import check_lists, check_tensors, covered, node_count, resolve_scale
from llsa_gen.spec import Spec

Vector = list[float]
Matrix = list[Vector]
Pyramid = list[Matrix]
Lists = list[list[list[int]]]
Member = tuple[int, int, float]


def pool(tokens: Matrix, spec: Spec, dtype: torch.dtype) -> Pyramid:
    """Return the tokens and the means of every node of every level, each mean rounded once to `dtype`."""
    length = len(tokens)
    pyramid = [tokens]
    for level in range(1, spec.depth + 1):
        width = spec.block**level
        blocks = (tokens[start : start + width] for start in range(0, length, width))
        pyramid.append([_rounded(_mean(block), dtype) for block in blocks])
    return pyramid


def select(query_pyramid: Pyramid, key_pyramid: Pyramid, spec: Spec) -> Lists:
    """Return the lists of all levels: the best nodes among the children of what the level above selected."""
    lists: Lists = [[] for _ in range(spec.depth)]
    for level in range(spec.depth, 0, -1):
        keys = key_pyramid[level]
        for row, query in enumerate(query_pyramid[level]):
            if level == spec.depth:
                candidates = list(range(len(keys)))
            else:
                parents = lists[level][row // spec.block]
                candidates = [child for parent in parents for child in children(parent, len(keys), spec.block)]
            scores = {node: _score(query, keys[node]) for node in candidates}
            ranked = sorted(candidates, key=lambda node: (-scores[node], node))
            topk = spec.topks[level - 1]
            chosen = ranked[:topk]
            lists[level - 1].append(chosen + [-1] * (topk - len(chosen)))
    return lists


def children(parent: int, count: int, block: int) -> range:
    """Return the ids below `parent` that exist among `count` nodes; a missing parent (-1) has none."""
    if parent < 0:
        return range(0)
    return range(parent * block, min((parent + 1) * block, count))


def attended(query: int, lists: Lists, length: int, spec: Spec) -> Iterator[Member]:
    """Yield `(level, node, weight)` of every key that query token `query` attends: a multiset, overlaps included."""
    block, depth = spec.block, spec.depth
    for level in range(depth, -1, -1):
        count = node_count(length, block, level)
        if level == depth:
            nodes: Sequence[int] = range(count)
        else:
            parents = lists[level][query // block ** (level + 1)]
            nodes = [child for parent in parents for child in children(parent, count, block)]
        for node in nodes:
            if level == 0:
                yield level, node, 1.0
            elif spec.enrichment == "overlap" or (
                spec.enrichment == "exclude_refined" and node not in lists[level - 1][query // block**level]
            ):
                yield level, node, spec.level_weight(level, covered(node, length, block, level))


def attend(
    query: Vector, members: Sequence[Member], keys: Pyramid, values: Pyramid, scale: float
) -> tuple[Vector, float]:
    """Return the weighted softmax mean of the members' values and `ln sum w e^s`.

    A query whose weights sum to zero has a zero output and `lse = -inf`.
    """
    logits = [scale * _dot(query, keys[level][node]) for level, node, _ in members]
    top = math.nan if any(math.isnan(logit) for logit in logits) else max(logits, default=-math.inf)
    output = [0.0] * len(values[0][0])
    if top == -math.inf:
        return output, -math.inf
    total = 0.0
    for (level, node, weight), logit in zip(members, logits, strict=True):
        mass = weight * math.exp(logit - top)
        total += mass
        for component, value in enumerate(values[level][node]):
            output[component] += mass * value
    return [value / total for value in output], top + math.log(total)


def attention(
    q: Tensor, k: Tensor, v: Tensor, spec: Spec, *, scale: float | None = None, idx: Sequence[Tensor] | None = None
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Return `(o, lse, idx)` for tensors [B,H,N,D]; o and lse in fp64, idx selected unless it is given.

    Raises:
        InputError: tensors or lists that do not fit.
        UnsupportedError: grouped heads, or different query and key lengths.
    """
    shape = check_tensors(q, k, v)
    factor = resolve_scale(scale, shape.dim)
    if idx is not None:
        check_lists(idx, shape, spec)
    output = torch.zeros(shape.batch, shape.heads, shape.queries, shape.value_dim, dtype=torch.float64)
    lse = torch.zeros(shape.batch, shape.heads, shape.queries, dtype=torch.float64)
    rows = [node_count(shape.queries, spec.block, level) for level in range(1, spec.depth + 1)]
    chosen = tuple(
        torch.full((shape.batch, shape.heads, count, topk), -1, dtype=torch.int32)
        for count, topk in zip(rows, spec.topks, strict=True)
    )
    for where in ((b, h) for b in range(shape.batch) for h in range(shape.heads)):
        queries, keys, values = (pool(x[where].double().tolist(), spec, x.dtype) for x in (q, k, v))
        lists = select(queries, keys, spec) if idx is None else [entries[where].tolist() for entries in idx]
        for i in range(shape.queries):
            members = list(attended(i, lists, shape.keys, spec))
            row, log_sum = attend(queries[0][i], members, keys, values, factor)
            output[where][i] = torch.tensor(row, dtype=torch.float64)
            lse[where][i] = log_sum
        if idx is None and shape.queries:
            for level, entries in enumerate(lists):
                chosen[level][where] = torch.tensor(entries, dtype=torch.int32)
    return output, lse, chosen if idx is None else tuple(idx)


def _mean(rows: Matrix) -> Vector:
    sums = [0.0] * len(rows[0])
    for row in rows:
        for component, value in enumerate(row):
            sums[component] += value
    return [value / len(rows) for value in sums]


def _rounded(row: Vector, dtype: torch.dtype) -> Vector:
    rounded: Vector = torch.tensor(row, dtype=torch.float64).to(dtype).double().tolist()
    return rounded


def _dot(left: Vector, right: Vector) -> float:
    total = 0.0
    for x, y in zip(left, right, strict=True):
        total += x * y
    return total


def _score(query: Vector, key: Vector) -> float:
    score = _dot(query, key)
    return -math.inf if math.isnan(score) else score
