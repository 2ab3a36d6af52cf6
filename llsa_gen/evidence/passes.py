# SPDX-License-Identifier: Apache-2.0
"""Forward and backward passes taken apart: every stage with its tensors, so that it can be run again by itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby

from torch import Tensor

from llsa_gen.evidence.calls import upward_gradients
from llsa_gen.ir import names
from llsa_gen.ir.sizes import short_lists
from llsa_gen.ir.types import Direction, Stage
from llsa_gen.jit import Kernel
from llsa_gen.ops.engine import kernels_of
from llsa_gen.ops.execute import Step, held, run_steps
from llsa_gen.ops.state import Run
from llsa_gen.spec import Spec
from llsa_gen.stages import GradKVStage, InvertIndex
from llsa_gen.workloads import Qkv

WANTED: dict[Direction, tuple[str, ...]] = {"forward": names.RESULTS, "backward": names.GRADIENTS}


@dataclass(frozen=True)
class Unit:
    """Neighbouring stages that finish something together.

    The phases of an inversion change counts in place, so none can be run twice without those before it; and a gradient
    of keys whose long lists come in parts has places that only the merging stage fills.

    Attributes:
        steps: The stages with their kernels.
        results: The tensors that other stages or the caller read.
    """

    steps: tuple[Step, ...]
    results: tuple[str, ...]

    def with_kernel(self, stage: Stage, kernel: Kernel) -> Unit:
        """The same with another kernel for one of the stages."""
        return replace(self, steps=tuple(Step(one, kernel if one == stage else old) for one, old, _ in self.steps))

    def repeatable(self, stage: Stage) -> tuple[str, tuple[Step, ...]]:
        """The fewest steps that run a stage and can be run again and again, with a name for them."""
        if isinstance(stage, InvertIndex):
            return f"{stage.kind}_{stage.level}", self.steps
        return stage.name, tuple(step for step in self.steps if step.stage == stage)

    def run(self, run: Run) -> dict[str, Tensor]:
        """Runs it on the tensors of a pass, which stay as they are, and returns its results."""
        written = {name for step in self.steps for name in step.stage.outputs}
        copied = {name: x.clone() if name in written else x for name, x in run.tensors.items()}
        found = run_steps(self.steps, replace(run, tensors=copied))
        return {name: found[name] for name in self.results}


@dataclass(frozen=True)
class Pass:
    """A forward or backward pass with all of its tensors, none of which was let go.

    Attributes:
        direction: Which.
        steps: Its stages with their kernels.
        run: Its tensors.
    """

    direction: Direction
    steps: tuple[Step, ...]
    run: Run

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """The units of its steps, in order."""
        groups = [tuple(group) for _, group in groupby(self.steps, lambda step: _bond(step.stage))]
        return tuple(Unit(group, self._results(group)) for group in groups)

    def repeatables(self) -> Mapping[str, tuple[Step, ...]]:
        """Every step, or phases that go together, by name."""
        return dict(unit.repeatable(step.stage) for unit in self.units for step in unit.steps)

    def _results(self, group: Sequence[Step]) -> tuple[str, ...]:
        """What a group writes and others read."""
        others = [step.stage for step in self.steps if step not in group]
        read = {*WANTED[self.direction], *(name for stage in others for name in stage.inputs)}
        return tuple(dict.fromkeys(name for step in group for name in step.stage.outputs if name in read))


def passes(
    spec: Spec, qkv: Qkv, target: str, *, records: bool = True, short: tuple[int, ...] | None = None
) -> Iterator[Pass]:
    """A forward pass by the kernels of a target, then a backward pass from its results where the spec has one.

    Args:
        spec: What is computed.
        qkv: Its inputs.
        target: Whose kernels run.
        records: Whether they have the schedules of their tuning records, or the default ones.
        short: Levels whose lists are inverted in one launch; None for what the length says.
    """
    given = dict(zip("qkv", qkv, strict=True))
    forward = _passed(spec, given, "forward", target, records, ())
    yield forward
    if not spec.gradient:
        return
    o_grad, lse_grad = upward_gradients(qkv[2])
    o, lse = forward.run.tensors["o"].to(qkv[2].dtype), forward.run.tensors["lse"]
    given |= {"o": o, "lse": lse, "o_grad": o_grad, "lse_grad": lse_grad}
    short = short_lists(spec, qkv[0].shape[2]) if short is None else short
    yield _passed(spec, given, "backward", target, records, short)


def _passed(
    spec: Spec, given: Mapping[str, Tensor], direction: Direction, target: str, records: bool, short: tuple[int, ...]
) -> Pass:
    found = kernels_of(spec, target, WANTED[direction], direction=direction, short=short, records=records)
    steps = tuple(Step(step.stage, step.kernel) for step in found)
    tensors = {name: held(x, target) for name, x in given.items()}
    run = Run(spec, given["q"].dtype, 1.0 / math.sqrt(spec.head_dim), tokens_first=False, tensors=tensors)
    run_steps(steps, run)
    return Pass(direction, steps, run)


def _bond(stage: Stage) -> tuple[str, int | str]:
    """What neighbouring stages of one unit have in common."""
    if isinstance(stage, InvertIndex):
        return "invert", stage.level
    if isinstance(stage, GradKVStage):
        return "grad_kv", stage.level
    return "alone", stage.name
