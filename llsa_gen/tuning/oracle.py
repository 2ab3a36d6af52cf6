# SPDX-License-Identifier: Apache-2.0
"""Whether a kernel is right: whole passes of a ragged length with it in them, judged against the reference in fp64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from llsa_gen.evidence.calls import upward_gradients
from llsa_gen.evidence.judge import judge, judge_gradients
from llsa_gen.evidence.passes import Pass, passes
from llsa_gen.ir import names
from llsa_gen.jit import Kernel
from llsa_gen.ops.engine import list_names
from llsa_gen.ops.execute import Step, run_steps
from llsa_gen.spec import Spec
from llsa_gen.workloads import Qkv, clustered_qkv

TOKENS = 509
"""A prime, so that the last node of every level is short."""


@dataclass(frozen=True)
class Oracle:
    """Small passes to try kernels in.

    Attributes:
        spec: What is computed.
        target: Whose kernels run.
        device: Where.
        tokens: Length of the inputs.
    """

    spec: Spec
    target: str
    device: str
    tokens: int = TOKENS

    @cached_property
    def qkv(self) -> Qkv:
        """The inputs."""
        return clustered_qkv(self.spec, 1, 1, self.tokens, seed=1, device=self.device)

    @cached_property
    def passes(self) -> tuple[Pass, ...]:
        """Forward and, where the spec has it, backward."""
        return tuple(passes(self.spec, self.qkv, self.target))

    def wrong(self, kernel: Kernel) -> str:
        """What is wrong with the results where a kernel takes the place of the one of its name; empty for nothing."""
        why: list[str] = []
        for one in self.passes:
            if any(step.kernel.name == kernel.name for step in one.steps):
                with fresh_memory():
                    found = run_steps(with_kernels(one, [kernel]), replace(one.run, tensors=dict(one.run.tensors)))
                why += self._judged(one, found)["why"]
        return "; ".join(why)

    def _judged(self, one: Pass, found: dict[str, Tensor]) -> dict[str, Any]:
        idx = [found[name] for name in list_names(self.spec)]
        dtype = self.qkv[0].dtype
        if one.direction == "forward":
            return judge(self.spec, self.qkv, idx, (found["o"].to(dtype), found["lse"]))
        gradients = [found[name].to(dtype) for name in names.GRADIENTS]
        return judge_gradients(self.spec, self.qkv, idx, upward_gradients(self.qkv[2]), gradients)


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
