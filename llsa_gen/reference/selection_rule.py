# SPDX-License-Identifier: Apache-2.0
"""When a selection is right: by the scores it reached and the parents it kept to, never by the order of its ids.

Two correct selections may differ where scores differ by less than rounding, so ids are not compared. Instead every row
must hold the right number of distinct, existing children of the list above **as it was given**, and the sorted exact
scores of what it took must equal those of the best candidates within twice the rounding error of one score.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from llsa_gen.reference import vectorised
from llsa_gen.reference.layout import check_tensors, node_count, span
from llsa_gen.spec import Spec

Pools = tuple[Sequence[Tensor], Sequence[Tensor]]
_UNIT32 = torch.finfo(torch.float32).eps


def assert_same_selection(
    idx: Sequence[Tensor], q: Tensor, k: Tensor, spec: Spec, *, pools: Pools | None = None
) -> None:
    """Raise AssertionError unless `idx` is a correct selection for q and k.

    Per row and level: width `K_l`, every id valid and unique, every id a child of a node in row `r // b` of the given
    list above, -1 only at the end and exactly `max(0, K_l - candidates)` of them, and the multiset of scores that of
    the best candidates within rounding (fp32 accumulation: `D * eps * |q| |k|`; pools: where their last bit is open).

    Args:
        idx: lists of levels 1..L.
        q: queries [B,H,N,D].
        k: keys [B,H,N,D].
        spec: the spec selected for.
        pools: `(q_pools, k_pools)` that the selection really read; then their rounding is not in question. By default
            the pools are computed here, and elements that another order of summation would round differently count as
            uncertain.
    """
    shape = check_tensors(q, k)
    assert len(idx) == spec.depth, f"{len(idx)} lists for {spec.depth} levels"
    for level in range(spec.depth, 0, -1):
        rows, nodes = (node_count(length, spec.block, level) for length in (shape.queries, shape.keys))
        given = idx[level - 1]
        expected = (shape.batch, shape.heads, rows, spec.topks[level - 1])
        assert tuple(given.shape) == expected, f"level {level}: shape {tuple(given.shape)}, expected {expected}"
        assert given.dtype == torch.int32, f"level {level}: dtype {given.dtype}, expected int32"
        if rows == 0:
            continue
        allowed = _allowed(None if level == spec.depth else idx[level], rows, nodes, given, spec.block)
        _assert_structure(given.long(), allowed, level)
        _assert_scores(given.long(), allowed, *_scores(q, k, spec, level, pools), level)


def _allowed(above: Tensor | None, rows: int, nodes: int, given: Tensor, block: int) -> Tensor:
    """Which nodes each row may take, bool [B,H,rows,nodes]."""
    if above is None:
        return torch.ones(*given.shape[:2], rows, nodes, dtype=torch.bool, device=given.device)
    parents = -(-nodes // block)
    marked = torch.zeros(*above.shape[:3], parents + 1, dtype=torch.bool, device=given.device)
    ids = above.long()
    marked.scatter_(-1, ids.where((ids >= 0) & (ids < parents), parents), True)
    lines = torch.arange(rows, device=given.device) // block
    return marked[:, :, lines][..., torch.arange(nodes, device=given.device) // block]


def _assert_structure(given: Tensor, allowed: Tensor, level: int) -> None:
    nodes = allowed.shape[-1]
    present = given != -1
    _assert_rows(((given >= -1) & (given < nodes)).all(-1), given, f"level {level}: an id does not exist")
    wanted = allowed.sum(-1).clamp(max=given.shape[-1])
    _assert_rows(present.sum(-1) == wanted, given, f"level {level}: wrong number of entries")
    _assert_rows((present[..., :-1] >= present[..., 1:]).all(-1), given, f"level {level}: -1 before an entry")
    children = allowed.gather(-1, given.clamp(min=0)) | ~present
    _assert_rows(children.all(-1), given, f"level {level}: not a child of the list above")
    ordered = given.sort(-1).values
    repeated = (ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)
    _assert_rows(~repeated.any(-1), given, f"level {level}: an id appears twice")


def _assert_scores(given: Tensor, allowed: Tensor, scores: Tensor, slack: Tensor, level: int) -> None:
    missing = given < 0
    reached = scores.gather(-1, given.clamp(min=0)).masked_fill(missing, -math.inf).sort(-1, descending=True).values
    width = min(given.shape[-1], scores.shape[-1])
    best = scores.masked_fill(~allowed, -math.inf).sort(-1, descending=True).values[..., :width]
    reached = reached[..., :width]
    tolerance = 2.0 * slack.masked_fill(~allowed, 0.0).amax(-1, keepdim=True)
    close = (reached == best) | ((reached - best).abs() <= tolerance) | (tolerance == math.inf)
    _assert_rows(close.all(-1), given, f"level {level}: scores differ from the best candidates'")


def _scores(q: Tensor, k: Tensor, spec: Spec, level: int, pools: Pools | None) -> tuple[Tensor, Tensor]:
    """Exact scores of all pairs of one level with NaN as -inf, and how far an fp32 score may be from them."""
    if pools is None:
        (queries, open_q), (keys, open_k) = (_pool_and_doubt(x, spec, level) for x in (q, k))
    else:
        queries, keys = (side[level - 1].double() for side in pools)
        open_q, open_k = torch.zeros_like(queries), torch.zeros_like(keys)
    scores = queries @ keys.mT
    scores = scores.masked_fill(scores.isnan(), -math.inf)
    lengths = queries.norm(dim=-1)[..., :, None] * keys.norm(dim=-1)[..., None, :]
    doubt = (queries.abs() + open_q) @ open_k.mT + open_q @ keys.abs().mT
    slack = q.shape[-1] * _UNIT32 * lengths + doubt
    # A node that is not finite has a score that is ±inf or NaN in any precision; beyond fp32's range all is open.
    slack = slack.masked_fill(lengths > torch.finfo(torch.float32).max, math.inf)
    return scores, slack.masked_fill(~scores.isfinite() | slack.isnan(), 0.0)


def _pool_and_doubt(x: Tensor, spec: Spec, level: int) -> tuple[Tensor, Tensor]:
    """One level's pool in fp64 and, per element, how far another order of summation could have moved it."""
    stored = vectorised.pool(x, spec)[level - 1].double()
    wide = x.double()
    mean, size = (vectorised.pool(tensor, spec)[level - 1] for tensor in (wide, wide.abs()))
    unit = torch.finfo(torch.float64 if x.dtype == torch.float64 else torch.float32).eps
    error = min(span(spec.block, level), x.shape[2]) * unit * size
    ends = [(mean + sign * error).to(x.dtype).double() for sign in (-1.0, 1.0)]
    doubt = torch.maximum((ends[0] - stored).abs(), (ends[1] - stored).abs())
    return stored, doubt.nan_to_num(0.0, 0.0, 0.0)


def _assert_rows(right: Tensor, given: Tensor, what: str) -> None:
    """Assert a condition per row [B,H,rows] and show the first row that breaks it."""
    if bool(right.all()):
        return
    where = tuple((~right).nonzero()[0].tolist())
    count = int((~right).sum())
    raise AssertionError(f"{what} ({count} rows, first at batch, head, row {where}: {given[where].tolist()})")
