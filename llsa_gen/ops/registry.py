# SPDX-License-Identifier: Apache-2.0
"""The torch ops: `torch.ops.llsa_gen.attention`, `.select` and `.attend` for any spec, and three per loaded package.

Ops take [B,H,N,D] tensors of any strides. Their schemas hold the spec as plain values, so that torch.compile sees one
node, shapes stay symbolic and nothing is rebuilt for another length.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from llsa_gen import dtypes
from llsa_gen.errors import UnsupportedError, explain
from llsa_gen.lowering import choose_depth
from llsa_gen.ops import engine
from llsa_gen.ops.checks import check_entries, check_for_spec, check_lists, check_tensors, resolve_scale
from llsa_gen.spec import Spec

NAMESPACE = "llsa_gen"
_LIBRARY: Any = torch.library.Library(NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]
_DEFINING = threading.Lock()
_FIELDS = "int levels, int block, int[] topk, str enrichment, str weight"

Implementation = Callable[..., Any]


AUTO_LEVELS = 0
"""Value of `levels` that lets the length decide the depth."""


def spec_of_call(
    q: Tensor, v: Tensor, levels: int, block: int, topk: Sequence[int], enrichment: str, weight: str
) -> Spec:
    """The spec of a call of a general op; `AUTO_LEVELS` takes the depth with the fewest flops at this length.

    Raises:
        SpecError: A value is not allowed.
    """
    dims = (q.dtype, int(q.shape[3]), int(v.shape[3]))
    fields = (block, tuple(topk), enrichment, weight)
    if levels == AUTO_LEVELS:
        levels = choose_depth(_spec(*dims, 1, *fields), max(int(q.shape[2]), 1)).levels
    return _spec(*dims, levels, *fields)


@lru_cache(maxsize=1024)
def _spec(
    dtype: torch.dtype,
    head_dim: int,
    value_dim: int,
    levels: int,
    block: int,
    topk: tuple[int, ...],
    enrichment: str,
    weight: str,
) -> Spec:
    return Spec(
        levels=levels,
        block=block,
        topk=topk[0] if len(topk) == 1 else topk,
        head_dim=head_dim,
        value_dim=value_dim,
        dtype=dtypes.from_torch(dtype).name,
        enrichment=enrichment,
        weight=weight,
    )


def register(name: str, schema: str, real: Implementation, fake: Implementation, *, differentiable: bool) -> None:
    """Defines one op for CPU and CUDA tensors, with its fake kernel."""
    _LIBRARY.define(f"{name}{schema}")
    for key in ("CPU", "CUDA"):
        _LIBRARY.impl(name, real, key)
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_LIBRARY)
    if differentiable:
        torch.library.register_autograd(f"{NAMESPACE}::{name}", _no_backward, lib=_LIBRARY)


def register_spec(spec: Spec) -> str:
    """Defines the ops of one spec, once, and returns the name of its attention op: the slug."""
    slug = spec.slug
    with _DEFINING:
        if not hasattr(torch.ops.llsa_gen, slug):
            _define(slug, spec)
    return slug


def _define(slug: str, spec: Spec) -> None:
    attention, select, attend = _fixed(spec)
    tail = "float? scale=None, bool tokens_first=False) -> (Tensor, Tensor)"
    register(f"{slug}_select", "(Tensor q, Tensor k) -> Tensor[]", *select, differentiable=False)
    register(f"{slug}_attend", f"(Tensor q, Tensor k, Tensor v, Tensor[] idx, {tail}", *attend, differentiable=True)
    register(slug, f"(Tensor q, Tensor k, Tensor v, {tail}", *attention, differentiable=True)


def _attention(q: Tensor, k: Tensor, v: Tensor, *call: Any) -> tuple[Tensor, Tensor]:
    fields, scale, tokens_first = _split(call)
    check_tensors(q, k, v)
    spec = spec_of_call(q, v, *fields)
    return engine.attention(spec, q, k, v, resolve_scale(scale, spec.head_dim), tokens_first=tokens_first)


def _attention_fake(q: Tensor, k: Tensor, v: Tensor, *call: Any) -> tuple[Tensor, Tensor]:
    fields, _, tokens_first = _split(call)
    check_tensors(q, k, v)
    spec_of_call(q, v, fields[0] or 1, *fields[1:])  # o does not depend on the depth, so the length stays symbolic
    return engine.empty_output(q, v, tokens_first)


def _select(q: Tensor, k: Tensor, *fields: Any) -> list[Tensor]:
    check_tensors(q, k)
    return list(engine.select(spec_of_call(q, q, *fields), q, k))


def _select_fake(q: Tensor, k: Tensor, *fields: Any) -> list[Tensor]:
    check_tensors(q, k)
    return list(engine.empty_lists(spec_of_call(q, q, *fields), q))


def _attend(q: Tensor, k: Tensor, v: Tensor, idx: Sequence[Tensor], *call: Any) -> tuple[Tensor, Tensor]:
    fields, scale, tokens_first = _split(call)
    check_tensors(q, k, v)
    return _attend_checked(spec_of_call(q, v, *fields), q, k, v, idx, scale, tokens_first)


def _attend_fake(q: Tensor, k: Tensor, v: Tensor, idx: Sequence[Tensor], *call: Any) -> tuple[Tensor, Tensor]:
    fields, _, tokens_first = _split(call)
    check_tensors(q, k, v)
    check_lists(idx, spec_of_call(q, v, *fields), q)
    return engine.empty_output(q, v, tokens_first)


def _split(call: Sequence[Any]) -> tuple[Sequence[Any], float | None, bool]:
    """The spec, the scale and the memory order of o out of what follows the tensors."""
    return call[:5], *_options(call[5:])


def _options(given: Sequence[Any]) -> tuple[float | None, bool]:
    """The scale and whether o lies in memory as [B,N,H,D]; torch leaves out what has its default."""
    scale = given[0] if given else None
    return scale, bool(given[1]) if len(given) > 1 else False


def _attend_checked(
    spec: Spec, q: Tensor, k: Tensor, v: Tensor, idx: Sequence[Tensor], scale: float | None, tokens_first: bool
) -> tuple[Tensor, Tensor]:
    check_lists(idx, spec, q)
    if q.device.type == "cpu":
        check_entries(idx, spec, k.shape[2])
    else:
        idx = [
            entries.clamp(-1, max(-(-k.shape[2] // spec.block**level) - 1, -1)) for level, entries in enumerate(idx, 1)
        ]
    return engine.attend(spec, q, k, v, idx, resolve_scale(scale, spec.head_dim), tokens_first=tokens_first)


def _fixed(spec: Spec) -> tuple[tuple[Implementation, Implementation], ...]:
    """Real and fake kernels of attention, select and attend of one spec."""

    def check(q: Tensor, k: Tensor, v: Tensor | None = None) -> None:
        check_tensors(q, k, v)
        check_for_spec(spec, q, v)

    def attention(q: Tensor, k: Tensor, v: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
        check(q, k, v)
        scale, tokens_first = _options(options)
        return engine.attention(spec, q, k, v, resolve_scale(scale, spec.head_dim), tokens_first=tokens_first)

    def attention_fake(q: Tensor, k: Tensor, v: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
        check(q, k, v)
        return engine.empty_output(q, v, _options(options)[1])

    def select(q: Tensor, k: Tensor) -> list[Tensor]:
        check(q, k)
        return list(engine.select(spec, q, k))

    def select_fake(q: Tensor, k: Tensor) -> list[Tensor]:
        check(q, k)
        return list(engine.empty_lists(spec, q))

    def attend(q: Tensor, k: Tensor, v: Tensor, idx: Sequence[Tensor], *options: Any) -> tuple[Tensor, Tensor]:
        check(q, k, v)
        return _attend_checked(spec, q, k, v, idx, *_options(options))

    def attend_fake(q: Tensor, k: Tensor, v: Tensor, idx: Sequence[Tensor], *options: Any) -> tuple[Tensor, Tensor]:
        check(q, k, v)
        check_lists(idx, spec, q)
        return engine.empty_output(q, v, _options(options)[1])

    return (attention, attention_fake), (select, select_fake), (attend, attend_fake)


def _no_backward(*_: Any) -> Any:
    what = "this op has no backward kernels yet, so no gradient can pass through it"
    hint = "run the forward pass under torch.no_grad(), or detach q, k and v"
    raise UnsupportedError(explain(what, where="backward of torch.ops.llsa_gen", hint=hint))


_TAIL = "float? scale=None, bool tokens_first=False) -> (Tensor, Tensor)"
register(
    "attention", f"(Tensor q, Tensor k, Tensor v, {_FIELDS}, {_TAIL}", _attention, _attention_fake, differentiable=True
)
register("select", f"(Tensor q, Tensor k, {_FIELDS}) -> Tensor[]", _select, _select_fake, differentiable=False)
register(
    "attend",
    f"(Tensor q, Tensor k, Tensor v, Tensor[] idx, {_FIELDS}, {_TAIL}",
    _attend,
    _attend_fake,
    differentiable=True,
)
