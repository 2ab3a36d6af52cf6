# SPDX-License-Identifier: Apache-2.0
"""What torch calls: real and fake kernels of the ops, once for ops of any spec and once for those of one spec.

Ops take [B,H,N,D] tensors of any strides. A general op has the fields of the spec among its arguments, as plain values;
the ops of one spec leave them out. Both share the text below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llsa_gen import dtypes
from llsa_gen.ir import names
from llsa_gen.lowering import choose_depth
from llsa_gen.ops import engine, launch
from llsa_gen.ops.bound import form_of
from llsa_gen.ops.checks import (
    check_entries,
    check_for_spec,
    check_gradients,
    check_lists,
    check_tensors,
    has_tangents,
    refuse_tangents,
    resolve_scale,
)
from llsa_gen.ops.recent import Recent
from llsa_gen.ops.state import nodes
from llsa_gen.spec import Spec

AUTO_LEVELS = 0
"""Value of `levels` that lets the length decide the depth."""

FIELDS = "int levels, int block, int[] topk, str enrichment, str weight"
FIELD_COUNT = 5


PASSES: Recent[engine.BoundPass] = Recent(512)
"""The passes of the last forms of calls. A call is checked before its pass is bound, so the next one need not be."""


def forget_passes() -> None:
    """Forgets the kernels that were found for calls, for who changes kernels within a process."""
    engine.forget_kernels()
    PASSES.clear()


@dataclass(frozen=True, eq=False)
class Calls:
    """The kernels of the ops of one spec, or of the general ops.

    What follows the tensors of a call is `rest`: the fields of a general op, then the scale and whether o lies in
    memory as [B,N,H,Dv]; torch leaves out what has its default.

    Attributes:
        spec: The spec, or None where calls bring its fields.
    """

    spec: Spec | None = None

    def attention(self, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        """o and the log-sum-exps."""
        key = self._key("attention", (q, k, v), rest)
        bound = PASSES.get(key) or PASSES.keep(key, self._attention_pass(q, k, v, rest))
        o, lse = bound(q, k, v)
        return o, lse

    def _attention_pass(self, q: Tensor, k: Tensor, v: Tensor, rest: Sequence[Any]) -> engine.BoundPass:
        spec = self.resolve(q, k, v, rest)
        scale, tokens_first = self.options(rest)
        return engine.attention_pass(spec, q, k, v, resolve_scale(scale, spec.head_dim), tokens_first=tokens_first)

    def attention_fake(self, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        """Tensors like the results; they do not depend on the depth, so the length stays symbolic."""
        self.resolve(q, k, v, rest, any_depth=True)
        return engine.empty_output(q, v, self.options(rest)[1])

    def select(self, q: Tensor, k: Tensor, *rest: Any) -> list[Tensor]:
        """The lists of every level."""
        key = self._key("select", (q, k), rest)
        bound = PASSES.get(key) or PASSES.keep(key, engine.select_pass(self.resolve(q, k, None, rest), q, k))
        return list(bound(q, k))

    def select_fake(self, q: Tensor, k: Tensor, *rest: Any) -> list[Tensor]:
        """Tensors like the lists."""
        return list(engine.empty_lists(self.resolve(q, k, None, rest), q))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, idx: Sequence[Tensor], *rest: Any) -> tuple[Tensor, Tensor]:
        """o and the log-sum-exps, with given lists."""
        key = self._key("attend", (q, k, v, *idx), rest)
        bound = PASSES.get(key) or PASSES.keep(key, self._attend_pass(q, k, v, idx, rest))
        o, lse = bound(q, k, v, *idx)
        return o, lse

    def _attend_pass(
        self, q: Tensor, k: Tensor, v: Tensor, idx: Sequence[Tensor], rest: Sequence[Any]
    ) -> engine.BoundPass:
        spec = self.resolve(q, k, v, rest)
        scale, tokens_first = self.options(rest)
        check_lists(idx, spec, q)
        scale = resolve_scale(scale, spec.head_dim)
        bound = engine.attend_pass(spec, q, k, v, idx, scale, tokens_first=tokens_first)
        return lambda q, k, v, *idx: bound(q, k, v, *usable_lists(spec, idx, q))

    def attend_fake(self, q: Tensor, k: Tensor, v: Tensor, idx: Sequence[Tensor], *rest: Any) -> tuple[Tensor, Tensor]:
        """Tensors like the results."""
        check_lists(idx, self.resolve(q, k, v, rest), q)
        return engine.empty_output(q, v, self.options(rest)[1])

    def backward(self, *call: Any) -> tuple[Tensor, ...]:
        """The gradients of q, k and v; those that are not needed are tensors without elements, and cost nothing."""
        given, rest = split_backward(call)
        tensors = (*given.tensors().values(), *given.idx)
        key = self._key("backward", tensors, rest, tuple(given.needed))
        bound = PASSES.get(key) or PASSES.keep(key, self._backward_pass(given, rest))
        return tuple(bound(*tensors))

    def _backward_pass(self, given: Backward, rest: Sequence[Any]) -> engine.BoundPass:
        q, needed, idx = given.q, tuple(given.needed), given.idx
        spec = self.resolve(q, given.k, given.v, rest)
        given.check()
        scale, tokens_first = self.options(rest)
        if engine.empty(q) or not any(needed):
            return lambda q, k, v, *_: empty_gradients((q, k, v), needed, tokens_first)
        if idx:
            check_lists(idx, spec, q)
        wanted = tuple(name for name, is_needed in zip(names.GRADIENTS, needed, strict=True) if is_needed)
        scale = resolve_scale(scale, spec.head_dim)
        bound = engine.gradients_pass(spec, given.tensors(), scale, wanted, idx, tokens_first=tokens_first)

        def backward(*tensors: Tensor) -> tuple[Tensor, ...]:
            q, lists = tensors[0], tensors[len(names.GIVEN) :]
            found = bound(*tensors[: len(names.GIVEN)], *usable_lists(spec, lists, q))
            by_name = dict(zip(wanted, found, strict=True))
            return tuple(by_name.get(name, q.new_empty(0)) for name in names.GRADIENTS)

        return backward

    def backward_fake(self, *call: Any) -> tuple[Tensor, ...]:
        """Tensors like the gradients."""
        given, rest = split_backward(call)
        self.resolve(given.q, given.k, given.v, rest, any_depth=True)
        given.check()
        return empty_gradients((given.q, given.k, given.v), given.needed, self.options(rest)[1])

    def options(self, rest: Sequence[Any]) -> tuple[float | None, bool]:
        """The scale and the memory order of o."""
        given = rest[len(self.fields(rest)) :]
        scale = given[0] if given else None
        return scale, bool(given[1]) if len(given) > 1 else False

    def fields(self, rest: Sequence[Any]) -> tuple[Any, ...]:
        """The fields of the spec as plain values, where calls bring them."""
        return tuple(rest[:FIELD_COUNT]) if self.spec is None else ()

    def resolve(self, q: Tensor, k: Tensor, v: Tensor | None, rest: Sequence[Any], *, any_depth: bool = False) -> Spec:
        """The spec of a call, once its tensors fit it."""
        check_tensors(q, k, v)
        if self.spec is not None:
            check_for_spec(self.spec, q, v)
            return self.spec
        levels, *others = self.fields(rest)
        return spec_of_call(q, q if v is None else v, (levels or 1) if any_depth else levels, *others)

    def _key(self, kind: str, tensors: Sequence[Tensor], rest: Sequence[Any], *more: Any) -> tuple[Any, ...]:
        """What decides how a call is computed: two calls with one key are served by one pass.

        Raises:
            UnsupportedError: A tensor has a tangent, which no form tells.
        """
        if has_tangents():
            refuse_tangents(zip(names.GIVEN, tensors, strict=False))
        plain = rest if self.spec is not None else (*rest[:2], tuple(rest[2]), *rest[3:])
        threads = torch.get_num_threads()  # tuning records hold for a number of them
        return self, kind, plain, more, launch.CPU_TARGET, threads, *map(form_of, tensors)


class Backward(NamedTuple):
    """What a backward op is called with, before the rest that it shares with the forward op.

    Attributes:
        o_grad: Gradient of o, [B,H,N,Dv].
        lse_grad: Gradient of the log-sum-exps, fp32 [B,H,N]; None where they were not used.
        q: [B,H,N,D].
        k: [B,H,N,D].
        v: [B,H,N,Dv].
        o: What the forward op returned.
        lse: What the forward op returned.
        idx: The lists that were given to it; empty where it selected by itself.
        needed: Whether the gradients of q, k and v are needed.
    """

    o_grad: Tensor
    lse_grad: Tensor | None
    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    lse: Tensor
    idx: Sequence[Tensor]
    needed: Sequence[bool]

    def check(self) -> None:
        """Checks what came after q, k and v against them; errors as `check_gradients`."""
        check_gradients(self.q, self.v, o=self.o, o_grad=self.o_grad, lse=self.lse, lse_grad=self.lse_grad)

    def tensors(self) -> dict[str, Tensor]:
        """The inputs of the plan of gradients."""
        lse_grad = torch.zeros_like(self.lse) if self.lse_grad is None else self.lse_grad
        found = {name: getattr(self, name) for name in names.GIVEN if name != "lse_grad"}
        return {**found, "lse_grad": lse_grad}


def split_backward(call: Sequence[Any]) -> tuple[Backward, Sequence[Any]]:
    """The arguments of a backward op, and the rest."""
    count = len(Backward._fields)
    return Backward(*call[:count]), call[count:]


def empty_gradients(qkv: Sequence[Tensor], needed: Sequence[bool], tokens_first: bool) -> tuple[Tensor, ...]:
    """New tensors like the gradients of q, k and v, not filled; without elements where they are not needed."""
    q = qkv[0]
    return tuple(
        engine.empty_rows(q, x.shape[2], x.shape[3], tokens_first) if is_needed else q.new_empty(0)
        for x, is_needed in zip(qkv, needed, strict=True)
    )


def usable_lists(spec: Spec, idx: Sequence[Tensor], q: Tensor) -> Sequence[Tensor]:
    """Given lists once their values are checked; on a GPU nobody looks at those, and they are brought into range."""
    if q.device.type == "cpu":
        check_entries(idx, spec, q.shape[2])
        return idx
    return [
        entries.clamp(-1, max(nodes(q.shape[2], spec.block, level) - 1, -1))
        for level, entries in enumerate(idx, start=1)
    ]


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
