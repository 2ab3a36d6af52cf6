# SPDX-License-Identifier: Apache-2.0
"""A whole run: every step in its turn, within the budget, into the record."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llsa_gen import __version__
from llsa_gen.environment import BUILD_VARIABLE
from llsa_gen.evidence import process
from llsa_gen.evidence.budget import Budget, share
from llsa_gen.evidence.record import Record
from llsa_gen.evidence.steps import STEPS, Step
from llsa_gen.evidence.worker import MARK
from llsa_gen.paths import CACHE_VARIABLE
from llsa_gen.spec import EMULATION
from llsa_gen.targets import CPU_VARIABLE

Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes:
        minutes: The time budget.
        out: Folder of the record.
        target: The GPU target.
        prebuilt: Cache folder with the kernels; the usual one when not given.
        dry: Whether to try the script on the CPU and only check what a GPU would run.
        can_build: Whether kernels that are missing may be built during the run.
        steps: Names of the steps to run.
    """

    minutes: float
    out: Path
    target: str
    prebuilt: Path | None = None
    dry: bool = False
    can_build: bool = False
    steps: tuple[str, ...] = tuple(step.need.name for step in STEPS)


def run(request: Request, say: Say) -> bool:
    """Runs the steps and returns whether all that ran were right.

    A step that fails, crashes or runs out of time costs only itself; its results so far are in the record.
    """
    steps = [step for step in STEPS if step.need.name in request.steps]
    budget = Budget(60 * request.minutes)
    record = Record(request.out, version=__version__, target=request.target, minutes=request.minutes, dry=request.dry)
    planned = share([step.need for step in steps], 60 * request.minutes)
    right = True
    for index, step in enumerate(steps):
        name = step.need.name
        if request.dry:
            record.state(name, would=_plan(step, planned[name]))
            say(f"{name}: {_plan(step, planned[name])}")
        limit = _limit(step, steps[index + 1 :], budget, request)
        if request.dry and not step.tried:
            record.state(name, status="not run", why="a dry run does not run other tools")
        elif limit is None:
            record.state(name, status="left out", why=f"{budget.left:.0f} s are left, it needs {step.need.least:.0f} s")
            say(f"{name}: left out, the time is over")
        else:
            right &= _run_step(step, request, limit, record, say)
    say(f"record: {record.path}")
    return right


def is_wrong(result: dict[str, Any]) -> bool:
    """Whether a result says that something is not as it must be."""
    bad_tests = bool(result.get("failures")) or bool(result.get("counts", {}).get("error"))
    sanitized = "tool" in result and result.get("code") not in (0, None)
    return result.get("right") is False or bool(result.get("missing")) or bad_tests or sanitized


def command_of(step: Step, request: Request, limit: float) -> list[str]:
    """The process of a step."""
    device = "cpu" if request.dry else "cuda"
    options = ["--device", device, "--target", request.target, "--limit", f"{limit:.0f}"]
    tiny = ["--tiny"] if request.dry else []
    return [sys.executable, "-m", "llsa_gen.evidence.worker", step.need.name, *options, *tiny]


def environment_of(step: Step, request: Request) -> dict[str, str]:
    """The environment of a step: prebuilt kernels wherever those of the GPU target are looked at."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    is_about_target = not request.dry or step.need.name in ("machine", "kernels")
    if request.prebuilt is not None and is_about_target:
        found[CACHE_VARIABLE] = str(request.prebuilt.absolute())
    if request.dry:
        found[CPU_VARIABLE] = EMULATION
    if not request.dry and not request.can_build:
        found[BUILD_VARIABLE] = "0"
    return found


def _run_step(step: Step, request: Request, limit: float, record: Record, say: Say) -> bool:
    name = step.need.name
    say(f"{name}: {step.about} (at most {limit:.0f} s)")
    record.state(name, status="running", limit=limit)

    def listen(line: str) -> None:
        if line.startswith(MARK):
            record.add(name, json.loads(line.removeprefix(MARK)))
            say(f"  {line.removeprefix(MARK)[:200]}")

    outcome = process.run(command_of(step, request, limit), limit, listen, environment_of(step, request))
    tail = outcome.tail if outcome.status != "done" else ""
    record.state(name, status=outcome.status, seconds=outcome.seconds, code=outcome.code, tail=tail)
    wrong = sum(is_wrong(result) for result in record.results(name))
    say(f"  {outcome.status} after {outcome.seconds:.1f} s{f', {wrong} wrong' if wrong else ''}\n{tail}".rstrip())
    return outcome.status == "done" and not wrong


def _limit(step: Step, later: Sequence[Step], budget: Budget, request: Request) -> float | None:
    """Seconds that a step may take; in a dry run all that are left, as it may build kernels for the CPU first."""
    if request.dry and budget.left > 0:
        return budget.left
    return budget.allow(step.need, [other.need for other in later])


def _plan(step: Step, allowed: float | None) -> str:
    span = "left out for lack of time" if allowed is None else f"up to {allowed:.0f} s"
    return f"would run {step.about}: {span}"
