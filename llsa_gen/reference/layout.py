# SPDX-License-Identifier: Apache-2.0
"""Where nodes lie and which tensors the reference accepts: the facts every oracle shares.

Nothing here computes attention, so that the oracles stay independent of each other in everything that could be wrong.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llsa_gen.errors import InputError, InputTypeError, UnsupportedError, explain
from llsa_gen.spec import Spec

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Shape:
    """The sizes of one call; lengths and heads of queries and keys are kept apart."""

    batch: int
    heads: int
    key_heads: int
    queries: int
    keys: int
    dim: int
    value_dim: int


def span(block: int, level: int) -> int:
    """Return the number of tokens below a complete node of `level`."""
    return int(block**level)


def node_count(length: int, block: int, level: int) -> int:
    """Return the number of nodes of `level` over `length` tokens (level 0 counts the tokens themselves)."""
    return -(-length // span(block, level))


def covered(node: int, length: int, block: int, level: int) -> int:
    """Return the number of tokens that a node really covers: `block**level`, or fewer at the ragged end."""
    width = span(block, level)
    return min((node + 1) * width, length) - node * width


def check_tensors(q: Tensor, k: Tensor, v: Tensor | None = None) -> Shape:
    """Check q [B,H,Nq,D], k [B,Hk,Nk,D] and v [B,Hk,Nk,Dv] and return their sizes.

    Raises:
        InputError: a tensor has a shape that does not fit the others.
        InputTypeError: a dtype is not a float of this project, or the dtypes differ.
        UnsupportedError: grouped heads, or different query and key lengths.
    """
    value = k if v is None else v
    _check_types(q, k, value)
    if q.shape[0] != k.shape[0] or q.shape[-1] != k.shape[-1] or k.shape[:3] != value.shape[:3]:
        shapes = (tuple(q.shape), tuple(k.shape), tuple(value.shape))
        allowed = "q [B,H,Nq,D], k [B,Hk,Nk,D], v [B,Hk,Nk,Dv]"
        raise InputError(explain("the shapes of q, k and v do not fit together", value=shapes, allowed=allowed))
    batch, heads, queries, dim = q.shape
    key_heads, keys = k.shape[1], k.shape[2]
    if heads != key_heads:
        hint = "repeat the key and value heads to the number of query heads"
        raise UnsupportedError(explain("grouped heads are not supported", value=(heads, key_heads), hint=hint))
    if queries != keys:
        hint = "use as many queries as keys"
        raise UnsupportedError(
            explain("different query and key lengths are not supported", value=(queries, keys), hint=hint)
        )
    return Shape(batch, heads, key_heads, queries, keys, dim, value.shape[-1])


def _check_types(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.ndim != 4:
            raise InputError(
                explain("a tensor is not 4-D", where=name, value=tuple(tensor.shape), allowed="[B, H, N, D]")
            )
        if tensor.dtype not in FLOATS or tensor.dtype != q.dtype:
            raise InputTypeError(
                explain(
                    "dtype not accepted", where=name, value=tensor.dtype, allowed="one floating dtype for q, k and v"
                )
            )


def check_lists(idx: Sequence[Tensor], shape: Shape, spec: Spec) -> None:
    """Check given lists: one per level, rows of the queries, ids of the keys, -1 for a missing entry.

    Raises:
        InputError: a wrong number of lists, a wrong shape, or an id outside -1 .. n_l - 1.
        InputTypeError: a list that does not hold integers.
    """
    if len(idx) != spec.depth:
        raise InputError(explain("one list per level is needed", where="idx", value=len(idx), allowed=spec.depth))
    for level, entries in enumerate(idx, start=1):
        where = f"idx[{level - 1}]"
        if entries.dtype not in (torch.int32, torch.int64):
            raise InputTypeError(
                explain("a list must hold integers", where=where, value=entries.dtype, allowed="int32")
            )
        rows, nodes = (node_count(length, spec.block, level) for length in (shape.queries, shape.keys))
        sizes = (shape.batch, shape.heads, rows)
        if entries.ndim != 4 or tuple(entries.shape[:3]) != sizes or entries.shape[3] == 0:
            expected = f"[{shape.batch}, {shape.heads}, {rows}, K] with K >= 1"
            raise InputError(
                explain("a list has the wrong shape", where=where, value=tuple(entries.shape), allowed=expected)
            )
        if entries.numel() and (int(entries.min()) < -1 or int(entries.max()) >= nodes):
            found = (int(entries.min()), int(entries.max()))
            raise InputError(
                explain("a list names nodes that do not exist", where=where, value=found, allowed=f"-1..{nodes - 1}")
            )


def resolve_scale(scale: float | None, dim: int) -> float:
    """Return the softmax scale: the given one, or `1 / sqrt(dim)`.

    Raises:
        InputError: the scale is not a positive finite number.
    """
    if scale is None:
        return 1.0 / math.sqrt(dim)
    if not 0.0 < scale < math.inf:
        raise InputError(explain("scale must be positive and finite", where="scale", value=scale, allowed="scale > 0"))
    return float(scale)
