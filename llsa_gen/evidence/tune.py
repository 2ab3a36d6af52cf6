# SPDX-License-Identifier: Apache-2.0
"""Tuning: every schedule in the cache of every kernel, checked against the solved one's result, then timed with it."""

from __future__ import annotations

from dataclasses import asdict, replace

import torch
from torch import Tensor

from llsa_gen.codegen import KernelInstance, KernelPackage, render
from llsa_gen.errors import LlsaError
from llsa_gen.evidence.passes import Pass, Unit, passes
from llsa_gen.evidence.prebuilt import by_worth, candidates, main_spec
from llsa_gen.evidence.record import finite
from llsa_gen.evidence.setting import Results, Setting
from llsa_gen.ir.types import Stage
from llsa_gen.jit import Kernel, load_kernel
from llsa_gen.ops.execute import run_steps
from llsa_gen.ops.state import Run
from llsa_gen.schedule import Schedule
from llsa_gen.timing import Call, Rounds, in_turns
from llsa_gen.workloads import clustered_qkv

SHAPE = (1, 6, 65_536)
TINY = (1, 2, 300)
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

Loaded = tuple[Schedule, Kernel]
Place = tuple[Unit, Stage, Run]
"""A stage within its unit, with the tensors of its pass."""


def work(setting: Setting) -> Results:
    """Yields, per kernel and schedule, its time or why it is left out, the best of every kernel first."""
    package = render(main_spec())
    qkv = clustered_qkv(package.spec, *(TINY if setting.tiny else SHAPE), device=setting.device)
    with torch.inference_mode():
        places = places_of(tuple(passes(package.spec, qkv, setting.runs)))
        rounds = Rounds(count=2) if setting.tiny else Rounds(setting.limit / (2 * len(places)), count=20)
        for kernel in by_worth(package):
            if kernel.name not in places:  # of long lists, which tiny problems have not
                continue
            yield from _tune(package, kernel, places[kernel.name], setting, rounds)


def places_of(both: tuple[Pass, ...]) -> dict[str, Place]:
    """Where each kernel is tried: in the forward pass if it is part of that, at the last (finest) stage that has it."""
    places: dict[str, Place] = {}
    for one in reversed(both):
        places |= {step.kernel.name: (unit, step.stage, one.run) for unit in one.units for step in unit.steps}
    return places


def _tune(package: KernelPackage, kernel: KernelInstance, place: Place, setting: Setting, rounds: Rounds) -> Results:
    unit, stage, run = place
    name, _ = unit.repeatable(stage)
    said = {"kernel": kernel.name, "stage": stage.name, "timed": name, "shape": list(run.tensors["q"].shape[:3])}
    solved = dict(kernel.schedules)[setting.runs]
    expected = unit.run(run)
    right: dict[str, Schedule] = {}
    calls: dict[str, Call] = {}
    for schedule, tried in _in_cache(package, kernel, setting.runs):
        changed = unit.with_kernel(stage, tried)
        problem = disagreement(stage.kind, changed, run, expected)
        name = f"rows{schedule.rows}_keys{schedule.keys}_threads{schedule.threads}_stages{schedule.stages}"
        if problem is None:
            right[name] = schedule
            calls[name] = repeated(changed, stage, run)
        else:
            yield said | {"schedule": asdict(schedule), "right": False, "why": problem}
    times = in_turns(calls, rounds, setting.device)
    for name, found in sorted(times.items(), key=lambda item: item[1]["median"]):
        yield said | {"schedule": asdict(right[name]), "right": True, "solved": right[name] == solved, "seconds": found}


def repeated(unit: Unit, stage: Stage, run: Run) -> Call:
    """A call that runs a stage on a copy of the table of tensors, which it fills with results of its own."""
    _, steps = unit.repeatable(stage)
    own = replace(run, tensors=dict(run.tensors))
    return lambda: run_steps(steps, own)


def _in_cache(package: KernelPackage, kernel: KernelInstance, target: str) -> list[Loaded]:
    found = []
    for schedule in candidates(package, kernel, target):
        loaded = load_kernel(package, kernel.with_schedule(target, schedule), target)
        if loaded is not None:
            found.append((schedule, loaded))
    return found


def disagreement(kind: str, unit: Unit, run: Run, expected: dict[str, Tensor]) -> str | None:
    """Why the results of a schedule cannot be trusted, or None; an error that stays in the device ends the step."""
    try:
        actual = unit.run(run)
    except LlsaError as error:
        return str(error)[:300]
    bound = AGREE[kind]
    for name, tensor in expected.items():
        distance = _distance(kind, actual[name], tensor)
        if not distance <= bound:  # so that NaN is refused
            return f"{name} differs from the solved schedule by {finite(distance)}, allowed {bound}"
    return None


def _distance(kind: str, actual: Tensor, expected: Tensor) -> float:
    if not expected.dtype.is_floating_point:
        mine, theirs = (x.sort(-1).values if kind == "select" else x for x in (actual, expected))
        return float((mine != theirs).double().mean())
    difference = (actual.double() - expected.double()).abs().max()
    return float(difference / expected.double().abs().max().clamp(min=1e-30))
