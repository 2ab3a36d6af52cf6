# SPDX-License-Identifier: Apache-2.0
"""Inputs that mean something: what tests, benches and tuning feed to attention.

There are no random index tensors here on purpose: lists come from selecting on these inputs, so that neighbouring
rows share blocks and a few blocks are popular, as in a model. Everything is drawn on the CPU, so a seed gives the same
numbers on every device.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from llsa_gen.errors import InputError, explain
from llsa_gen.spec import Spec

Qkv = tuple[Tensor, Tensor, Tensor]


def random_qkv(
    spec: Spec,
    batch: int,
    heads: int,
    n: int,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Qkv:
    """Return independent standard normal q, k [B,H,N,D] and v [B,H,N,Dv], as after QK-norm.

    Args:
        spec: gives head_dim, value_dim and the default dtype.
        batch: batch size.
        heads: heads of queries, keys and values.
        n: tokens.
        seed: the same seed gives the same numbers.
        dtype: the spec's by default.
        device: where the tensors go.
    """
    return _placed(_normal(spec, batch, heads, n, seed), spec, dtype, device)


def clustered_qkv(
    spec: Spec,
    batch: int,
    heads: int,
    n: int,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    topics: int = 16,
    noise: float = 0.5,
) -> Qkv:
    """Return q, k, v with structure: a smooth field, topics that come back along the sequence, and noise.

    The sequence is cut into segments of about two blocks, each about one of `topics` directions. Queries look like the
    keys of their own topic, so a query block finds its own neighbourhood and the other places where its topic occurs,
    and some topics are more popular than others. Pools keep the signal because topics last longer than a block.
    Arguments as `random_qkv`.

    Args:
        spec: gives head_dim, value_dim, block and the default dtype.
        batch: batch size.
        heads: heads of queries, keys and values.
        n: tokens.
        seed: the same seed gives the same numbers.
        dtype: the spec's by default.
        device: where the tensors go.
        topics: number of directions that segments are about.
        noise: share of independent noise in q, k and v.
    """
    generator = torch.Generator().manual_seed(seed)
    field = _topic_field(generator, (batch, heads, n, spec.head_dim), 2 * spec.block, topics)
    field = field + _smooth_field(generator, (batch, heads, n, spec.head_dim))
    mixing = torch.randn(heads, spec.head_dim, spec.dim_v, generator=generator) / math.sqrt(spec.head_dim)
    q, k, v = _normal(spec, batch, heads, n, seed + 1)
    return _placed((field + noise * q, field + noise * k, field @ mixing + noise * v), spec, dtype, device)


def adversarial_qkv(
    case: str,
    spec: Spec,
    batch: int,
    heads: int,
    n: int,
    *,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> Qkv:
    """Return inputs of one named difficulty (`FINITE_CASES` and `NONFINITE_CASES`). Other arguments as `random_qkv`.

    A non-finite case has one NaN or inf in the middle token of head 0 of batch entry 0, and nowhere else.

    Raises:
        InputError: there is no such case.
    """
    if case not in _CASES:
        raise InputError(explain("unknown adversarial case", where="case", value=case, allowed=tuple(_CASES)))
    return _placed(_CASES[case](_normal(spec, batch, heads, n, seed)), spec, dtype, device)


def _normal(spec: Spec, batch: int, heads: int, n: int, seed: int) -> Qkv:
    generator = torch.Generator().manual_seed(seed)
    dims = (spec.head_dim, spec.head_dim, spec.dim_v)
    q, k, v = (torch.randn(batch, heads, n, dim, generator=generator) for dim in dims)
    return q, k, v


def _placed(qkv: Qkv, spec: Spec, dtype: torch.dtype | None, device: torch.device | str) -> Qkv:
    q, k, v = (x.to(device=device, dtype=dtype or spec.element.torch) for x in qkv)
    return q, k, v


def _topic_field(generator: torch.Generator, shape: tuple[int, int, int, int], length: int, topics: int) -> Tensor:
    """Piecewise constant directions; topic t is drawn with probability proportional to 1 / (t + 1)."""
    batch, heads, n, dim = shape
    directions = torch.randn(heads, topics, dim, generator=generator)
    popularity = 1.0 / torch.arange(1, topics + 1, dtype=torch.float32)
    starts = torch.rand(batch, n, generator=generator) < 1.0 / length
    segments = starts.cumsum(-1)
    drawn = torch.multinomial(popularity.expand(batch, -1), n + 1, replacement=True, generator=generator)
    return directions[:, drawn.gather(-1, segments)].transpose(0, 1)


def _smooth_field(generator: torch.Generator, shape: tuple[int, int, int, int], waves: int = 8) -> Tensor:
    """Random sums of a few slow waves along the sequence, of unit variance."""
    batch, heads, n, dim = shape
    phase = torch.arange(n, dtype=torch.float32) / max(n, 1) * math.pi
    basis = torch.cos(phase[:, None] * torch.arange(1, waves + 1)) * math.sqrt(2.0 / waves)
    return basis @ torch.randn(batch, heads, waves, dim, generator=generator)


def _constant(qkv: Qkv) -> Qkv:
    q, k, v = (torch.full_like(x, value) for x, value in zip(qkv, (0.5, -0.25, 3.0), strict=True))
    return q, k, v


def _ties(qkv: Qkv) -> Qkv:
    """Entries -1, 0 and 1: small whole scores, equal ones everywhere."""
    q, k, v = qkv
    return q.clamp(-1, 1).round(), k.clamp(-1, 1).round(), v


def _duplicated_rows(qkv: Qkv) -> Qkv:
    """Only three different tokens, repeated in turn."""
    q, k, v = (x[:, :, torch.arange(x.shape[2]) % 3] for x in qkv)
    return q, k, v


def _huge_logits(qkv: Qkv) -> Qkv:
    """Logits in the thousands: a softmax that is one key almost everywhere, within the range of fp16."""
    q, k, v = qkv
    return 12.0 * q.clamp(-4, 4), 12.0 * k.clamp(-4, 4), v


def _large_values(qkv: Qkv) -> Qkv:
    """Values near the end of fp16, whose sums over a block are beyond it."""
    q, k, v = qkv
    return q, k, 3.0e4 + 1.0e3 * v.clamp(-4, 4)


def _small(qkv: Qkv) -> Qkv:
    """Numbers whose products are subnormal in fp16."""
    q, k, v = (x * 2.0**-11 for x in qkv)
    return q, k, v


def _negative_zero(qkv: Qkv) -> Qkv:
    """Zeros of both signs in q and k, negative zeros in v."""
    q, k, v = qkv
    return torch.copysign(torch.zeros_like(q), q), torch.copysign(torch.zeros_like(k), k), -torch.zeros_like(v)


def _poison(which: int, value: float) -> Callable[[Qkv], Qkv]:
    """Put one value into the middle token of the first head of q (0), k (1) or v (2)."""

    def place(qkv: Qkv) -> Qkv:
        target = qkv[which]
        if target.numel():
            target[0, 0, target.shape[2] // 2, 0] = value
        return qkv

    return place


_FINITE: Mapping[str, Callable[[Qkv], Qkv]] = MappingProxyType(
    {
        "constant": _constant,
        "ties": _ties,
        "duplicated_rows": _duplicated_rows,
        "huge_logits": _huge_logits,
        "large_values": _large_values,
        "small": _small,
        "negative_zero": _negative_zero,
    }
)
_NONFINITE: Mapping[str, Callable[[Qkv], Qkv]] = MappingProxyType(
    {
        f"{name}_{tensor}": _poison(which, value)
        for which, tensor in enumerate(("query", "key", "value"))
        for name, value in (("nan", math.nan), ("inf", math.inf), ("minus_inf", -math.inf))
    }
)
_CASES = {**_FINITE, **_NONFINITE}

FINITE_CASES = tuple(_FINITE)
NONFINITE_CASES = tuple(_NONFINITE)
