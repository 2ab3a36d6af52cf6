# SPDX-License-Identifier: Apache-2.0
"""Sharing a time budget: every step may take its most, unless steps after it would then lose their least."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

ROUNDING = 1e-6
RESERVE = 5.0
"""Seconds kept back for ending cleanly."""


@dataclass(frozen=True)
class Need:
    """What a step asks for.

    Attributes:
        name: The step.
        least: Seconds below which it is not worth starting.
        most: Seconds after which it is stopped.
    """

    name: str
    least: float
    most: float


class Budget:
    """Time that is left of a run."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end = clock() + seconds

    @property
    def left(self) -> float:
        """Seconds that steps may still take."""
        return max(0.0, self._end - self._clock() - RESERVE)

    def allow(self, need: Need, later: Sequence[Need]) -> float | None:
        """Seconds that a step may take now, or None where it must be left out.

        Steps come in order of value: one takes its least even where later steps then get nothing, and more than that
        only from what later steps do not need at least.
        """
        left = self.left
        if left < need.least - ROUNDING:
            return None
        spare = left - sum(step.least for step in later)
        return min(need.most, max(need.least, spare))


def share(needs: Sequence[Need], seconds: float) -> dict[str, float | None]:
    """What every step would be allowed where each takes all that it may; for saying so beforehand."""
    now = 0.0
    budget = Budget(seconds, clock=lambda: now)
    allowed: dict[str, float | None] = {}
    for index, need in enumerate(needs):
        allowed[need.name] = budget.allow(need, needs[index + 1 :])
        now += allowed[need.name] or 0.0
    return allowed
