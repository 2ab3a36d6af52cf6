# SPDX-License-Identifier: Apache-2.0
"""Tuning: every schedule in the cache of every kernel, checked against the solved one's result, then timed with it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from llsa_gen.codegen import KernelInstance, KernelPackage, render
from llsa_gen.errors import LlsaError
from llsa_gen.evidence import timing
from llsa_gen.evidence.bench import prepared
from llsa_gen.evidence.prebuilt import candidates, main_spec, scheduled
from llsa_gen.evidence.record import finite
from llsa_gen.evidence.setting import Results, Setting
from llsa_gen.evidence.timing import Rounds
from llsa_gen.jit import Kernel, load_kernel
from llsa_gen.ops.execute import Step, run_steps
from llsa_gen.ops.state import Run
from llsa_gen.schedule import Schedule
from llsa_gen.workloads import clustered_qkv

SHAPE = (1, 6, 65_536)
TINY = (1, 2, 300)
AGREE = {"select": 1e-3, "attend": 2e-2, "coarsen": 1e-2}
"""Accepted differences by kind of stage: share of list entries that differ, or distance relative to the largest value.

A schedule changes the order of sums only; a tie broken otherwise may change an entry of a list."""

Loaded = tuple[Schedule, Kernel]


def work(setting: Setting) -> Results:
    """Yields, per kernel and schedule, its time or why it is left out, and then the best of every kernel."""
    package = render(main_spec())
    qkv = clustered_qkv(package.spec, *(TINY if setting.tiny else SHAPE), device=setting.device)
    with torch.inference_mode():
        steps, run = prepared(package.spec, qkv, setting)
        stages = {step.kernel.name: (step.kernel, step.stage) for step in reversed(steps)}
        limit = setting.limit / (2 * len(stages))
        rounds = Rounds(2, 1) if setting.tiny else Rounds(count=20, seconds=limit)
        for kernel in package.kernels:
            loaded, stage = stages[kernel.name]
            yield from _tune(package, kernel, Step(stage, loaded), run, setting, rounds)


def _tune(
    package: KernelPackage, kernel: KernelInstance, step: Step, run: Run, setting: Setting, rounds: Rounds
) -> Results:
    said = {"kernel": kernel.name, "stage": step.stage.name, "shape": list(run.tensors["q"].shape[:3])}
    solved = dict(kernel.schedules)[setting.runs]
    expected = _outputs(step, run)
    right: dict[str, Schedule] = {}
    calls: dict[str, timing.Call] = {}
    for schedule, tried in _in_cache(package, kernel, setting.runs):
        problem = _disagreement(Step(step.stage, tried), run, expected)
        name = f"rows{schedule.rows}_keys{schedule.keys}_threads{schedule.threads}_stages{schedule.stages}"
        if problem is None:
            right[name] = schedule
            calls[name] = lambda tried=tried: run_steps((Step(step.stage, tried),), run)  # type: ignore[misc]
        else:
            yield said | {"schedule": asdict(schedule), "right": False, "why": problem}
    times = timing.interleaved(calls, setting.device, rounds)
    for name, found in sorted(times.items(), key=lambda item: item[1]["median"]):
        yield said | {"schedule": asdict(right[name]), "right": True, "solved": right[name] == solved, "seconds": found}


def _in_cache(package: KernelPackage, kernel: KernelInstance, target: str) -> list[Loaded]:
    found = []
    for schedule in candidates(package, kernel, target):
        loaded = load_kernel(package, scheduled(kernel, target, schedule), target)
        if loaded is not None:
            found.append((schedule, loaded))
    return found


def _outputs(step: Step, run: Run) -> dict[str, Tensor]:
    """What a stage writes, run with the inputs that it had."""
    run_steps((step,), run)
    return {name: run.tensors[name].clone() for name in step.stage.outputs}


def _disagreement(step: Step, run: Run, expected: dict[str, Tensor]) -> str | None:
    """Why the result of a schedule cannot be trusted, or None; an error that stays in the device ends the step."""
    try:
        actual = _outputs(step, run)
        worst = max(_distance(actual[name], tensor) for name, tensor in expected.items())
    except LlsaError as error:
        return str(error)[:300]
    bound = AGREE[step.stage.kind]
    return None if worst <= bound else f"differs from the solved schedule by {finite(worst)}, allowed {bound}"


def _distance(actual: Tensor, expected: Tensor) -> float:
    if not expected.dtype.is_floating_point:
        mine, theirs = actual.sort(-1).values, expected.sort(-1).values
        return float((mine != theirs).double().mean())
    difference: Any = (actual.double() - expected.double()).abs().max()
    return float(difference / expected.double().abs().max().clamp(min=1e-30))
