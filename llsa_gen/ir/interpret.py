# SPDX-License-Identifier: Apache-2.0
"""Interpret: the meaning of a plan, computed slowly on the CPU, one function per kind of stage.

It runs the plan after every lowering pass, so that a pass can be shown to keep the meaning. Nothing is shared with
the reference: the two are written separately and compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from llsa_gen.errors import InputError, UnsupportedError, explain
from llsa_gen.ir import names
from llsa_gen.ir.sizes import IntSizes
from llsa_gen.ir.types import Piece, Plan, Stage

if TYPE_CHECKING:
    from llsa_gen.stages import Attend, Coarsen, Segment, Select


def interpret(
    plan: Plan,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    *,
    compute_dtype: torch.dtype = torch.float32,
    given: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Runs a plan.

    Sums are in fp32 (fp64 for fp64 operands) and means are rounded to the dtype of their operand, as they are stored.
    Everything else is in ``compute_dtype`` and stays in it, o and lse too: results of two plans compare closely.

    Args:
        plan: A verified plan, lowered or not.
        q: ``[B, H, Nq, D]``.
        k: ``[B, H, Nk, D]``.
        v: ``[B, H, Nk, Dv]``.
        scale: Factor of the logits, ``1 / sqrt(D)`` without it.
        compute_dtype: Dtype of all arithmetic.
        given: Lists by name (``idx1``..), int32 ``[B, H, n_l, K]`` with any K; their selections are not run.

    Returns:
        Every tensor of the plan that was produced, by name.

    Raises:
        InputError: A tensor has a shape that does not fit the plan, or a given list does not belong to it.
        UnsupportedError: k and v have other heads than q.
    """
    given = dict(given or {})
    _check(plan, q, k, v, given)
    sizes = IntSizes(plan.spec, q.shape[2], k.shape[2], q.shape[0], q.shape[1], k.shape[1])
    scale = 1.0 / math.sqrt(plan.spec.head_dim) if scale is None else scale
    values = {"q": q, "k": k, "v": v, **{name: lists.long() for name, lists in given.items()}}
    state = _State(plan, sizes, scale, compute_dtype, values)
    for stage in plan.stages:
        if not given.keys() >= set(stage.outputs):
            MEANINGS[stage.kind](stage, state)
    return {name: value.int() if name.startswith("idx") else value for name, value in state.values.items()}


@dataclass
class _State:
    """The tensors so far and what every stage needs to know."""

    plan: Plan
    sizes: IntSizes
    scale: float
    compute: torch.dtype
    values: dict[str, Tensor] = field(default_factory=dict)

    def read(self, piece: Piece) -> Tensor:
        """The rows of one level."""
        start = self._offset(piece)
        count = int(self.sizes.nodes(piece.level, self.plan.tensor(piece.tensor).side))
        return self.values[piece.tensor][:, :, start : start + count]

    def write(self, piece: Piece, rows: Tensor) -> None:
        """Stores the rows of one level of a tensor that may hold several."""
        tensor = self.plan.tensor(piece.tensor)
        if len(tensor.levels) == 1:
            self.values[piece.tensor] = rows
            return
        if piece.tensor not in self.values:
            shape = [int(self.sizes.extent(axis.extent)) for axis in tensor.axes]
            self.values[piece.tensor] = rows.new_zeros(shape)
        start = self._offset(piece)
        self.values[piece.tensor][:, :, start : start + rows.shape[2]] = rows

    def _offset(self, piece: Piece) -> int:
        tensor = self.plan.tensor(piece.tensor)
        before = tensor.levels[: tensor.levels.index(piece.level)]
        return sum(int(self.sizes.nodes(level, tensor.side)) for level in before)

    def rows(self, stage: Stage, operand: str, level: int) -> Tensor:
        """The rows of an operand that a stage reads, in the compute dtype."""
        return self.read(Piece(names.rows_of(stage.inputs, operand, level), level)).to(self.compute)

    def lists(self, level: int) -> Tensor:
        """The selected nodes of a level."""
        return self.values[names.lists(level)]

    def counts(self, level: int, side: str) -> Tensor:
        """c_l(j): the tokens that each node covers."""
        length, span = int(self.sizes.nodes(0, side)), self.plan.spec.block**level
        nodes = range(int(self.sizes.nodes(level, side)))
        return torch.tensor([min(span, length - node * span) for node in nodes], dtype=self.compute)


# -- coarsen --------------------------------------------------------------------------------------


def _coarsen(stage: Stage, state: _State) -> None:
    coarsen = cast("Coarsen", stage)
    side = names.side(coarsen.operand)
    level, rows = coarsen.source_level, _widened(state.read(coarsen.reads(state.plan)[0]))
    means = [piece for piece in coarsen.writes(state.plan) if "_sums_" not in piece.tensor]
    for piece in means:
        rows = _group_sums(rows, state.plan.spec.block ** (piece.level - level))
        level = piece.level
        mean = rows / state.counts(level, side).to(rows.dtype)[:, None]
        state.write(piece, mean.to(state.values[coarsen.operand].dtype))
    if coarsen.emit_sums:
        state.write(Piece(names.sums(coarsen.operand, level), level), rows)


def _widened(rows: Tensor) -> Tensor:
    """Rows in the dtype of sums."""
    return rows if rows.dtype == torch.float64 else rows.float()


def _group_sums(rows: Tensor, span: int) -> Tensor:
    """Sums of ``span`` rows each, the last of what is left."""
    span = min(span, rows.shape[2])
    padded = torch.nn.functional.pad(rows, (0, 0, 0, -rows.shape[2] % span))
    return _regroup(padded, span).sum(3)


# -- select ---------------------------------------------------------------------------------------


def _select(stage: Stage, state: _State) -> None:
    select = cast("Select", stage)
    queries, keys = (state.rows(select, operand, select.level) for operand in ("q", "k"))
    batch, heads, rows, _ = queries.shape
    if select.candidates == "all":
        ids = torch.arange(keys.shape[2]).expand(batch, heads, rows, -1)
    else:
        parents = state.lists(select.level + 1)[:, :, torch.arange(rows) // state.plan.spec.block]
        ids = _children(parents, state.plan.spec.block, keys.shape[2])
    topk = state.plan.spec.topks[select.level - 1]
    state.values[names.lists(select.level)] = _best(queries, keys, ids, topk)


def _best(queries: Tensor, keys: Tensor, ids: Tensor, topk: int) -> Tensor:
    """The ids with the largest scores, ties to the lowest id, -1 where there are not enough."""
    missing = torch.iinfo(ids.dtype).max
    ids = torch.where(ids < 0, missing, ids).sort(dim=-1).values
    is_real = ids != missing
    candidates = _gather(keys, torch.where(is_real, ids, 0))
    scores = (queries[..., None, :] * candidates).sum(-1)
    scores = torch.where(is_real & ~scores.isnan(), scores, -math.inf)
    order = scores.sort(dim=-1, descending=True, stable=True).indices
    best = torch.where(is_real, ids, -1).gather(-1, order)[..., :topk]
    return torch.nn.functional.pad(best, (0, topk - best.shape[-1]), value=-1)


def _regroup(rows: Tensor, span: int) -> Tensor:
    """``[B, H, n * span, D]`` as ``[B, H, n, span, D]``."""
    return rows.reshape(*rows.shape[:2], -1, span, rows.shape[-1])


def _children(parents: Tensor, block: int, nodes: int) -> Tensor:
    """The ids of the children of every parent, -1 for those that do not exist."""
    ids = parents[..., None] * block + torch.arange(block)
    return torch.where((parents[..., None] >= 0) & (ids < nodes), ids, -1).flatten(-2)


def _gather(rows: Tensor, ids: Tensor) -> Tensor:
    """Rows by id: ``[B, H, n, D]`` at ``[B, H, R, C]`` gives ``[B, H, R, C, D]``."""
    flat = ids.flatten(2)[..., None].expand(-1, -1, -1, rows.shape[-1])
    return rows.gather(2, flat).reshape(*ids.shape, rows.shape[-1])


# -- attend ---------------------------------------------------------------------------------------


def _attend(stage: Stage, state: _State) -> None:
    attend = cast("Attend", stage)
    parts = [_attend_segment(attend, segment, state) for segment in attend.segments]
    if attend.carry:
        parts.insert(0, (state.values["o_carry"], state.values["lse_carry"]))
    o, lse = parts[0]
    for part in parts[1:]:
        o, lse = _merge(o, lse, *part)
    for piece, value in zip(attend.writes(state.plan), (o, lse), strict=True):
        state.write(piece, value)


def _merge(o_a: Tensor, lse_a: Tensor, o_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over two sets of keys from attention over each."""
    lse = torch.logaddexp(lse_a, lse_b)
    is_empty = lse == -math.inf
    share_a, share_b = (torch.where(is_empty, 0.0, (part - lse).exp())[..., None] for part in (lse_a, lse_b))
    return o_a * share_a + o_b * share_b, lse


def _attend_segment(attend: Attend, segment: Segment, state: _State) -> tuple[Tensor, Tensor]:
    """Attention over the keys of one segment; queries are grouped by the row of the list that they share."""
    queries = state.rows(attend, "q", 0)
    keys, values = (state.rows(attend, operand, segment.level) for operand in ("k", "v"))
    ids = _segment_ids(segment, keys.shape[2], state)
    length, groups = queries.shape[2], ids.shape[2]
    span = length if groups == 1 else state.plan.spec.block ** (segment.level + 1)
    grouped = _regroup(torch.nn.functional.pad(queries, (0, 0, 0, groups * span - length)), span)
    gathered = [_gather(rows, ids.clamp(min=0)) for rows in (keys, values)]
    logits = state.scale * torch.einsum("bhgqd,bhgcd->bhgqc", grouped, gathered[0])
    logits = logits + _log_weights(segment.level, state)[ids.clamp(min=0)][:, :, :, None]
    kept = (ids >= 0)[:, :, :, None] & ~_refined(segment, ids, span, state)
    o, lse = _softmax(logits, kept, gathered[1])
    return o.flatten(2, 3)[:, :, :length], lse.flatten(2, 3)[:, :, :length]


def _segment_ids(segment: Segment, nodes: int, state: _State) -> Tensor:
    """The keys of a segment, one row per group of queries, -1 where there is none."""
    if segment.keys == "lists":
        return _children(state.lists(segment.level + 1), state.plan.spec.block, nodes)
    batch, heads = state.values["q"].shape[:2]
    return torch.arange(nodes).expand(batch, heads, 1, -1)


def _log_weights(level: int, state: _State) -> Tensor:
    """ln w of every node of a level; tokens weigh 1."""
    if level == 0:
        return torch.zeros(int(state.sizes.nodes(0, "k")), dtype=state.compute)
    counts = state.counts(level, "k").long().tolist()
    weights = {count: math.log(state.plan.spec.level_weight(level, count)) for count in set(counts)}
    return torch.tensor([weights[count] for count in counts], dtype=state.compute)


def _refined(segment: Segment, ids: Tensor, span: int, state: _State) -> Tensor:
    """Whether a query leaves a node out because its own list has it: ``[B, H, groups, span, C]``."""
    batch, heads, groups, _ = ids.shape
    if state.plan.spec.enrichment != "exclude_refined" or segment.level == 0:
        return torch.zeros(1, 1, 1, 1, 1, dtype=torch.bool)
    lists = state.lists(segment.level)
    nodes = int(state.sizes.nodes(segment.level, "k"))
    table = torch.zeros(batch, heads, lists.shape[2], nodes + 1, dtype=torch.bool)
    table.scatter_(3, torch.where(lists < 0, nodes, lists), True)
    query = torch.arange(groups * span).clamp(max=int(state.sizes.nodes(0, "q")) - 1)
    own = (query // state.plan.spec.block**segment.level).reshape(groups, span)
    found = table[:, :, own]
    return found.gather(-1, ids.clamp(min=0)[:, :, :, None].expand(-1, -1, -1, span, -1))


def _softmax(logits: Tensor, kept: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp over the kept keys; 0 and -inf where the weights sum to nothing.

    Keys that are not kept do not count at all: not even an infinite or NaN value of theirs is seen.
    """
    logits = torch.where(kept, logits, -math.inf)
    top = logits.amax(-1, keepdim=True)
    weights = (logits - torch.where(top == -math.inf, 0.0, top)).exp()
    total = weights.sum(-1)
    o = torch.where((total == 0)[..., None], 0.0, _weighted_sum(weights, kept, values) / total[..., None])
    return o, torch.where(total == 0, -math.inf, total.log() + top[..., 0])


def _weighted_sum(weights: Tensor, kept: Tensor, values: Tensor) -> Tensor:
    """Sums of the kept values: a product of matrices where all queries of a group keep the same keys."""
    if kept.shape[3] == 1:
        return weights @ torch.where(kept[:, :, :, 0, :, None], values, 0.0)
    return torch.where(kept[..., None], weights[..., None] * values[:, :, :, None], 0.0).sum(-2)


MEANINGS: dict[str, Callable[[Stage, _State], None]] = {
    "coarsen": _coarsen,
    "select": _select,
    "attend": _attend,
}
"""What each kind of stage does."""


# -- inputs ---------------------------------------------------------------------------------------


def _check(plan: Plan, q: Tensor, k: Tensor, v: Tensor, given: Mapping[str, Tensor]) -> None:
    if q.dim() == k.dim() == v.dim() == 4 and k.shape[1] != q.shape[1]:
        raise UnsupportedError(explain("grouped heads are not supported", where="k", value=tuple(k.shape)))
    spec = plan.spec
    batch, heads, keys = (*q.shape[:2], k.shape[2]) if q.dim() == k.dim() == 4 else (0, 0, 0)
    right = {"q": (*q.shape[:3], spec.head_dim), "k": (batch, heads, keys, spec.head_dim)}
    right["v"] = (batch, heads, keys, spec.dim_v)
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tuple(tensor.shape) != right[name] or tensor.numel() == 0:
            what, allowed = "a tensor does not fit the plan", f"{right[name]} without empty axes"
            raise InputError(explain(what, where=name, value=tuple(tensor.shape), allowed=allowed))
    known = [names.lists(level) for level in range(1, spec.depth + 1)]
    for name in given:
        if name not in known:
            raise InputError(explain("the plan has no such list", where="given", value=name, allowed=known))
