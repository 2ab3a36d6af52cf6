# SPDX-License-Identifier: Apache-2.0
"""Whether a result is right, on a few rows of one head: by the error rule, at the very length that is timed.

The gradients that reach o and lse are zero but in those rows. So all of the gradients of q, k and v come from them,
and the reference needs no other row to know every one of those gradients exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from llsa_gen import reference
from llsa_gen.bench.dense import Dense
from llsa_gen.bench.statistics import sampled_blocks
from llsa_gen.evidence.bench import dense_error, dense_gradient_error
from llsa_gen.evidence.calls import Results, attention, leaves, select, train, upward_gradients
from llsa_gen.spec import Spec
from llsa_gen.workloads import Qkv

MOST_NODES = 2048
"""Most nodes of level 1 at which lists are compared with the reference's, which looks at every pair of them."""
DENSE_ERROR = 2e-2
"""Largest distance of dense attention, or of its gradient, to fp64 as a part of its largest entry, in any dtype."""


@dataclass(frozen=True)
class Sample:
    """Some rows of the first head.

    Attributes:
        spec: What is computed.
        qkv: All of q, k and v of that head.
        idx: Its lists.
        parts: Runs of blocks of queries.
    """

    spec: Spec
    qkv: Qkv
    idx: tuple[Tensor, ...]
    parts: tuple[slice, ...]

    @property
    def tokens(self) -> Tensor:
        """The tokens of the runs, ascending."""
        block, length = self.spec.block, self.qkv[0].shape[2]
        runs = [range(part.start * block, min(part.stop * block, length)) for part in self.parts]
        return torch.tensor([token for run in runs for token in run])

    def attend(self, qkv: Qkv, **options: Any) -> Results:
        """The reference for these rows."""
        found = [reference.attend(*qkv, self.idx, self.spec, rows=part, **options) for part in self.parts]
        o, lse = (torch.cat(tensors, 2) for tensors in zip(*found, strict=True))
        return o, lse

    def judge(self, found: Results) -> list[str]:
        """What is wrong with results of all rows of the head."""
        (q, k, v), tokens, why = self.qkv, self.tokens, list[str]()
        with torch.no_grad():
            exact, near = self.attend(self.qkv), self.attend(self.qkv, compute_dtype=q.dtype)
            absolute, _ = self.attend((q, k, v.abs()))
        reach = q[:, :, tokens].double().norm(dim=-1) * k.double().norm(dim=-1).amax(-1, keepdim=True)
        logit = 1.0 + reach / math.sqrt(q.shape[-1])
        sizes = (absolute * logit[..., None], logit + exact[1].abs())
        for label, mine, true, native, size in zip(("o", "lse"), found, exact, near, sizes, strict=True):
            rule = partial(reference.assert_close_by_rule, mine[:, :, tokens], true, native, magnitude=size)
            note(why, partial(rule, label=label))
        return why

    def judge_gradients(self, found: Sequence[Tensor], upward: Results) -> list[str]:
        """What is wrong with gradients of q, k and v that come from these rows alone."""
        why: list[str] = []
        exact, near = (self._gradients(upward, exact=exact) for exact in (True, False))
        for operand, mine, true, native in zip("qkv", found, exact, near, strict=True):
            rule = partial(reference.assert_close_by_rule, mine, true, native, reference.GRADIENT_FACTOR)
            note(why, partial(rule, label=f"{operand}_grad"))
        return why

    @torch.enable_grad()
    def _gradients(self, upward: Results, *, exact: bool) -> tuple[Tensor, ...]:
        dtype = self.qkv[0].dtype
        q, k, v = leaves((self.qkv[0].double(), self.qkv[1].double(), self.qkv[2].double()) if exact else self.qkv)
        compute_dtype, pool_dtype = (torch.float64, dtype) if exact else (dtype, None)
        results = self.attend((q, k, v), compute_dtype=compute_dtype, pool_dtype=pool_dtype)
        reached = [x[:, :, self.tokens].to(result.dtype) for x, result in zip(upward, results, strict=True)]
        return torch.autograd.grad(results, (q, k, v), reached)


def sample_of(spec: Spec, qkv: Qkv) -> Sample:
    """A few rows of the first head, with the lists that LLSA selects."""
    idx = tuple(map(first, select(spec, qkv[0], qkv[1])))
    q, k, v = map(first, qkv)
    return Sample(spec, (q, k, v), idx, sampled_blocks(idx[0].shape[2]))


def examine(spec: Spec, qkv: Qkv, dense: Dense) -> dict[str, Any]:
    """Runs LLSA and dense attention once and judges them.

    Returns:
        ``right``, ``why`` not, the rows that were compared, and whether lists were compared too.
    """
    sample = sample_of(spec, qkv)
    lists = sample.idx[0].shape[2] <= MOST_NODES
    why: list[str] = []
    if lists:
        note(why, partial(reference.assert_same_selection, sample.idx, *sample.qkv[:2], spec))
    if spec.gradient:
        upward = only(upward_gradients(qkv[2]), sample.tokens)
        mine = train(spec, qkv, upward)
        results = mine.results
        why += sample.judge_gradients([first(x) for x in mine.gradients], (first(upward[0]), first(upward[1])))
    else:
        results = attention(spec, *qkv)
    why += sample.judge((first(results[0]), first(results[1])))
    why += judge_dense(dense, gradient=spec.gradient)
    return {"right": not why, "why": why, "rows": len(sample.tokens), "heads": 1, "lists": lists}


def judge_dense(dense: Dense, *, gradient: bool) -> list[str]:
    """What is wrong with dense attention, on some of its rows of the first head."""
    q, k, v = dense.qkv
    (o,), why = dense.forward(), list[str]()
    errors = {"dense o": dense_error((q, k, v), o) / float(o.abs().max())}
    if gradient:
        o_grad, q_grad = dense.o_grad(), dense.training()()[0]
        errors["dense q_grad"] = dense_gradient_error((q, k, v), o_grad, q_grad) / float(q_grad.abs().max())
    for label, error in errors.items():
        if not error <= DENSE_ERROR:
            why.append(f"{label}: distance to fp64 is {error:.3e} of the largest entry, allowed {DENSE_ERROR:g}")
    return why


def only(upward: Results, tokens: Tensor) -> Results:
    """Gradients of o and lse that are zero but at some tokens."""
    kept = [torch.zeros_like(x) for x in upward]
    for mine, x in zip(kept, upward, strict=True):
        mine[:, :, tokens] = x[:, :, tokens]
    return kept[0], kept[1]


def first(x: Tensor) -> Tensor:
    """The first head."""
    return x[:1, :1]


def note(why: list[str], check: Callable[[], None]) -> None:
    """Runs a check and notes why it failed."""
    try:
        check()
    except AssertionError as error:
        why.append(str(error)[:600])
