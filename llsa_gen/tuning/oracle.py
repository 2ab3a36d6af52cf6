# SPDX-License-Identifier: Apache-2.0
"""Whether a kernel is right: whole passes of a ragged length with it in them, judged against the reference in fp64."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from llsa_gen.evidence.calls import upward_gradients
from llsa_gen.evidence.judge import Truth, judge, judge_gradients, truth_of
from llsa_gen.evidence.passes import Pass, passes
from llsa_gen.ir import names
from llsa_gen.ir.sizes import part_entries
from llsa_gen.jit import Kernel
from llsa_gen.ops.engine import list_names
from llsa_gen.ops.execute import Step, run_steps
from llsa_gen.ops.state import Run
from llsa_gen.reference import GRADIENT_FACTOR
from llsa_gen.spec import Spec
from llsa_gen.workloads import Qkv, clustered_qkv

TOKENS = 509
"""A prime, so that the last node of every level is short."""
PART_TOKENS = 61
"""Tokens beyond the length from which on lists come in parts."""
LONG_TOKENS = 8192
"""Most tokens of inputs whose inverted lists are so long that they come in parts."""
FACTOR = 3 * GRADIENT_FACTOR
"""Of the error rule for gradients: a wrong kernel is farther off, and where most of a gradient cancels, as on inputs
that all select one block, right ones may be 4 times as far off as plain torch."""


@dataclass(frozen=True)
class Oracle:
    """Small passes to try kernels in.

    Attributes:
        spec: What is computed.
        target: Whose kernels run.
        device: Where.
        tokens: Length of the inputs.
        short: Levels whose lists are inverted in one launch where they come in parts.
    """

    spec: Spec
    target: str
    device: str
    tokens: int = TOKENS
    short: tuple[int, ...] = ()

    @cached_property
    def passes(self) -> tuple[Pass, ...]:
        """Forward and, where the spec has it, backward; and one backward where lists come in parts."""
        qkv = clustered_qkv(self.spec, 1, 1, self.tokens, seed=1, device=self.device)
        both = tuple(passes(self.spec, qkv, self.target, records=False))
        if not self.spec.gradient:
            return both
        long = passes(self.spec, self._skewed_qkv(), self.target, records=False, short=self.short)
        return (*both, *(one for one in long if one.direction == "backward"))

    def _skewed_qkv(self) -> Qkv:
        """Inputs of which every query selects the first block, so that its lists come in parts, on each level.

        A level whose lists come in parts beyond `LONG_TOKENS` only has none. Where all else is noise, means of more
        tokens lose as much of it as of what draws the queries.
        """
        enough = [self.spec.block**level * part_entries(self.spec, level) for level in range(1, self.spec.depth + 1)]
        tokens = max((each for each in enough if each < LONG_TOKENS), default=0) + PART_TOKENS
        widths = (self.spec.head_dim, self.spec.head_dim, self.spec.dim_v)
        noise, dtype = torch.Generator().manual_seed(2), self.spec.element.torch
        q, k, v = (torch.randn(1, 1, tokens, width, generator=noise).to(self.device, dtype) for width in widths)
        q[..., 0] = 4.0
        k[:, :, : self.spec.block, 0] = 8.0
        return q, k, v

    def sees(self, kernel: Kernel) -> bool:
        """Whether a kernel has work in some pass: it is missed where it does nothing."""
        return self.wrong(Idle(kernel)) != ""

    def wrong(self, kernel: Kernel) -> str:
        """What is wrong with the results where a kernel takes the place of the one of its name; empty for nothing."""
        why: list[str] = []
        for one, truth in zip(self.passes, self._truths, strict=True):
            if any(step.kernel.name == kernel.name for step in one.steps):
                run = replace(one.run, tensors=dict(one.run.tensors))
                with fresh_memory():
                    stray = self._run(with_kernels(one, [kernel]), run)
                why += [stray] if stray else self._judged(one, run.tensors, truth)["why"]
        return "; ".join(why)

    @cached_property
    def _truths(self) -> tuple[Truth | None, ...]:
        """What the gradients of each pass are judged by; None of a forward pass."""
        found = []
        for one in self.passes:
            qkv, idx = self._qkv(one), [one.run.tensors[name] for name in list_names(self.spec)]
            is_forward = one.direction == "forward"
            found.append(None if is_forward else truth_of(self.spec, qkv, idx, upward_gradients(qkv[2])))
        return tuple(found)

    def _run(self, steps: Sequence[Step], run: Run) -> str:
        """Runs steps; ends before numbers would lead the next one out of memory, and says which they are."""
        for step in steps:
            run_steps((step,), run)
            for name in step.stage.outputs:
                x = run.tensors[name]
                end = self._ends(run).get(name, run.tensors["q"].shape[2] * max(self.spec.topks) + 1)
                if not x.is_floating_point() and x.numel() and not -1 <= int(x.min()) <= int(x.max()) < end:
                    return f"{name} holds {int(x.min())} to {int(x.max())}, allowed -1 to {end - 1}"
        return ""

    def _ends(self, run: Run) -> dict[str, int]:
        """How many nodes the numbers of a tensor count, by its name."""
        named = (names.lists, names.rows, names.part_nodes)
        return {name(level): nodes for level, nodes in enumerate(run.sizes.nodes, start=1) for name in named}

    def _qkv(self, one: Pass) -> Qkv:
        """The inputs of a pass."""
        q, k, v = (one.run.tensors[name].to(one.run.dtype) for name in "qkv")
        return q, k, v

    def _judged(self, one: Pass, found: dict[str, Tensor], truth: Truth | None) -> dict[str, Any]:
        qkv, idx = self._qkv(one), [found[name] for name in list_names(self.spec)]
        dtype = one.run.dtype
        if one.direction == "forward":
            return judge(self.spec, qkv, idx, (found["o"].to(dtype), found["lse"]))
        expected = [one.run.tensors[name] for name in list_names(self.spec)]
        is_known = all(torch.equal(mine, theirs) for mine, theirs in zip(idx, expected, strict=True))
        gradients = [found[name].to(dtype) for name in names.GRADIENTS]
        upward = upward_gradients(qkv[2])
        return judge_gradients(self.spec, qkv, idx, upward, gradients, truth if is_known else None, factor=FACTOR)


class Idle(Kernel):
    """A kernel that does nothing, in place of another."""

    def __init__(self, other: Kernel) -> None:
        self.name, self.parameters, self.arguments = other.name, other.parameters, other.arguments
        self.entry = ctypes.cast(_NOTHING, ctypes.c_void_p).value or 0
        self._other = other

    def prepare(self, device: int) -> None:
        """Readies nothing."""

    def run_all(self, threads: int, calls: int, count: int, memory: bytes) -> None:
        """Runs calls of kernels, of which this one may be one."""
        self._other.run_all(threads, calls, count, memory)

    def run(self, *arguments: int | float) -> None:
        """Does nothing."""


_NOTHING = ctypes.CFUNCTYPE(None, ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p)(lambda *_: None)
"""The entry of a kernel that does nothing."""


@contextmanager
def fresh_memory() -> Iterator[None]:
    """Lets new tensors hold NaN, which torch does where it is to be deterministic.

    Memory comes back with the right results of the run before, which would hide what a kernel leaves out.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def with_kernels(one: Pass, kernels: Sequence[Kernel]) -> tuple[Step, ...]:
    """The steps of a pass with other kernels in the places of those of their names."""
    others = {kernel.name: kernel for kernel in kernels}
    return tuple(Step(stage, others.get(kernel.name, kernel)) for stage, kernel, _ in one.steps)
