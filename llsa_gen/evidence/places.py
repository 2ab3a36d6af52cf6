# SPDX-License-Identifier: Apache-2.0
"""Places: where each kernel of a spec can be exchanged for another of the same meaning, compared with it, and timed.

What the tuner and the step that measures every schedule have in common.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from llsa_gen.errors import LlsaError
from llsa_gen.evidence.passes import Pass, Unit
from llsa_gen.evidence.record import finite
from llsa_gen.ir.types import Stage
from llsa_gen.jit import Kernel
from llsa_gen.ops.execute import repeat_steps
from llsa_gen.ops.state import Run
from llsa_gen.timing import Call

AGREE = {
    "coarsen": 1e-2,
    "select": 1e-3,
    "attend": 2e-2,
    "delta": 1e-4,
    "invert_index": 0.0,
    "attend_grad_q": 2e-2,
    "attend_grad_kv": 2e-2,
    "merge_grad_kv": 2e-2,
}
"""Accepted differences by kind of stage: share of list entries that differ, or distance relative to the largest value.

A schedule changes the order of sums only; a tie broken otherwise may change an entry of a list. Inverted lists are
sorted, so they have one right order."""


class Place(NamedTuple):
    """A stage within its unit, with the tensors of its pass.

    Attributes:
        unit: The stages that finish something together.
        stage: The one of them whose kernel is exchanged.
        run: All tensors of the pass.
    """

    unit: Unit
    stage: Stage
    run: Run

    @property
    def timed(self) -> str:
        """A name for what is timed here."""
        return self.unit.repeatable(self.stage)[0]

    def with_kernel(self, kernel: Kernel) -> Place:
        """The same with another kernel for the stage."""
        return self._replace(unit=self.unit.with_kernel(self.stage, kernel))

    def results(self) -> dict[str, Tensor]:
        """What the unit computes, by name; the tensors of the pass stay as they are."""
        return self.unit.run(self.run)

    def disagreement(self, expected: dict[str, Tensor]) -> str | None:
        """Why its results cannot be trusted, or None; an error that stays in the device is raised."""
        try:
            actual = self.results()
        except LlsaError as error:
            return str(error)[:300]
        kind, bound = self.stage.kind, AGREE[self.stage.kind]
        for name, tensor in expected.items():
            distance = _distance(kind, actual[name], tensor)
            if not distance <= bound:  # so that NaN is refused
                return f"{name} differs from the solved schedule by {finite(distance)}, allowed {bound}"
        return None

    def call(self) -> Call:
        """What runs the stage on the tensors of the pass, as often as it is called, with results of its own."""
        _, steps = self.unit.repeatable(self.stage)
        return repeat_steps(steps, replace(self.run, tensors=dict(self.run.tensors)))


def places_of(both: Sequence[Pass]) -> dict[str, Place]:
    """Where each kernel is tried: in the forward pass if it is part of that, at the last (finest) stage that has it."""
    places: dict[str, Place] = {}
    for one in reversed(both):
        places |= {step.kernel.name: Place(unit, step.stage, one.run) for unit in one.units for step in unit.steps}
    return places


def _distance(kind: str, actual: Tensor, expected: Tensor) -> float:
    if not expected.dtype.is_floating_point:
        mine, theirs = (x.sort(-1).values if kind == "select" else x for x in (actual, expected))
        return float((mine != theirs).double().mean())
    difference = (actual.double() - expected.double()).abs().max()
    return float(difference / expected.double().abs().max().clamp(min=1e-30))
