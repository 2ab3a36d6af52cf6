# SPDX-License-Identifier: Apache-2.0
"""What a step is told: where to run, what to build for, and whether only the script itself is being tried."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llsa_gen.spec import EMULATION

Results = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class Setting:
    """How a step runs.

    Attributes:
        device: ``cuda``, or ``cpu`` for trying the script out.
        target: The GPU target that the evidence is about.
        limit: Seconds that the step has.
        tiny: Whether sizes are as small as they can be, which says nothing about speed.
    """

    device: str
    target: str
    limit: float
    tiny: bool = False

    @property
    def runs(self) -> str:
        """The target whose kernels run: without a GPU, those of a GPU as C code."""
        return EMULATION if self.device == "cpu" else self.target
