# SPDX-License-Identifier: Apache-2.0
"""The steps of a run in order of value: what each does, what it asks for, and where its code is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from llsa_gen.evidence.budget import Need
from llsa_gen.evidence.setting import Results, Setting


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        need: Its name and the time it asks for.
        about: What it does, in a sentence.
        place: Module and function of its code.
        tried: Whether a dry run runs it on the CPU with tiny sizes, instead of only saying what it would do.
    """

    need: Need
    about: str
    place: str
    tried: bool = True


_SHAPES = (
    "about 20 small problems (ragged lengths, strides, dtypes, depths), forward and backward, against the reference by"
    " the error rule, each twice for the same bits"
)
_BENCH = (
    "forward and training passes at 16k and 65k tokens against SDPA (flash, cuDNN), interleaved, checked before timing;"
    " time per stage"
)
_SCHEDULES = "every schedule in the cache of every kernel, each checked and timed"

STEPS = (
    Step(Need("machine", 10, 30), "the device, its clocks, driver and software", "machine:describe"),
    Step(Need("kernels", 5, 30), "whether every kernel that is needed lies in the cache", "prebuilt:report"),
    Step(Need("compare", 30, 150), _SHAPES, "compare:work"),
    Step(
        Need("tests", 30, 300), "pytest of tests/kernels and tests/torch_face on the GPU", "checks:tests", tried=False
    ),
    Step(Need("memcheck", 20, 120), "compute-sanitizer memcheck on small problems", "checks:memcheck", tried=False),
    Step(Need("racecheck", 20, 150), "compute-sanitizer racecheck on small problems", "checks:racecheck", tried=False),
    Step(Need("bench", 60, 240), _BENCH, "bench:work"),
    Step(Need("schedules", 30, 510), _SCHEDULES, "schedules:work"),
)
"""All of them at their most take 26 minutes, and each of the three parts `machine` to `tests`, `memcheck` to `bench`
and `schedules` less than nine, for machines that are lent for half an hour and end a command after ten minutes."""

_HELPERS = {"exercise": "compare:exercise"}
"""Work that a step runs under another tool."""


def work_of(name: str) -> Callable[[Setting], Results]:
    """The code of a step or helper."""
    places = {step.need.name: step.place for step in STEPS} | _HELPERS
    module, function = places[name].split(":")
    found: Callable[[Setting], Results] = getattr(import_module(f"llsa_gen.evidence.{module}"), function)
    return found
