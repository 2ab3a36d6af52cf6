# SPDX-License-Identifier: Apache-2.0
"""Running the steps of a plan one by one on a table of tensors, which holds what they made when they are done.

There are two ways to run a plan. Calls of the ops run bound passes (`bind`, `bound`): nothing is decided while they
run, tensors share memory, and only results are left, so that a call costs the host little. Who takes a plan apart runs
steps: the tuner, benchmarks and tests run some stages, exchange a kernel, repeat a stage to time it, and look at what
lies between stages. Both ask the same binders (one per kind of stage) what a kernel is called with; a test compares
their results bit by bit.

The kernels of a GPU as C code hold half types as fp32. Their tensors are widened once; what a plan stores in the input
dtype is rounded to it between stages, so that every stage reads the same values as on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor

from llsa_gen.ir.types import Stage
from llsa_gen.jit import Kernel
from llsa_gen.ops.binders import BINDERS
from llsa_gen.ops.binders.coarsen import pools_name
from llsa_gen.ops.launch import is_readable, launcher
from llsa_gen.ops.state import Run
from llsa_gen.spec import EMULATION
from llsa_gen.stages import Coarsen


class Step(NamedTuple):
    """A stage of a plan with the kernel that it launches.

    Attributes:
        stage: The stage.
        kernel: Its kernel.
        last_uses: Tensors that nobody needs after it.
    """

    stage: Stage
    kernel: Kernel
    last_uses: tuple[str, ...] = ()


def steps_of(pairs: Sequence[tuple[Stage, Kernel]], wanted: Collection[str]) -> tuple[Step, ...]:
    """The steps of some stages with their kernels, each saying which tensors may go after it."""
    steps: list[Step] = []
    needed = set(wanted)
    for stage, kernel in reversed(pairs):
        used = dict.fromkeys((*stage.inputs, *stage.outputs))
        steps.append(Step(stage, kernel, tuple(name for name in used if name not in needed)))
        needed |= set(used)
    return tuple(reversed(steps))


def run_steps(steps: Sequence[Step], run: Run) -> dict[str, Tensor]:
    """Runs some stages of a plan in order and returns the tensors that are left, by name.

    A tensor is let go after its last use, so that no more memory is held than the plan says.
    """
    for step in steps:
        for turn in _turns(step, run):
            turn()
        for name in step.last_uses:
            run.let_go(name)
    return run.tensors


def repeat_steps(steps: Sequence[Step], run: Run) -> Callable[[], None]:
    """Returns what runs some stages of a plan in order as often as it is called, always in the same memory.

    It times kernels without what surrounds them: binders are asked and tensors made here, once, and none is let go. The
    stages have run once when this returns, because the new tensors take the places of those in `run`.
    """
    turns = [turn for step in steps for turn in _turns(step, run)]

    def repeat() -> None:
        for turn in turns:
            turn()

    repeat()
    return repeat


def _turns(step: Step, run: Run) -> Iterator[Callable[[], object]]:
    """The launch of a step, and what happens to its results after it."""
    yield launcher(step.kernel, BINDERS[step.stage.kind](step.stage, run))
    if step.stage.kind == "coarsen" and run.widened:
        pools = run.tensors[pools_name(cast(Coarsen, step.stage))]
        yield lambda: pools.copy_(pools.to(run.dtype))


Reader = Callable[[Tensor], Tensor]


def held(tensor: Tensor, target: str) -> Tensor:
    """A tensor as the kernels of a target read it."""
    reader = reader_of(tensor, target)
    return tensor if reader is None else reader(tensor)


def reader_of(tensor: Tensor, target: str) -> Reader | None:
    """What makes of a tensor one that the kernels of a target read; None where it is one already.

    Rows of features keep their strides where kernels can follow them; lists and numbers by row lie side by side.
    """
    if tensor.ndim == 4 and tensor.is_floating_point():
        if target == EMULATION and tensor.dtype != torch.float32:
            return _WIDE
        return None if is_readable(tensor) else _COPY
    return None if tensor.is_contiguous() else _COPY


_WIDE = partial(torch.Tensor.to, dtype=torch.float32, memory_format=torch.contiguous_format)
_COPY = partial(torch.Tensor.clone, memory_format=torch.contiguous_format)
