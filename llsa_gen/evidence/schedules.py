# SPDX-License-Identifier: Apache-2.0
"""Schedules: every one in the cache of every kernel, checked against the solved one's result, then timed with it.

This step measures and chooses nothing: on a GPU that is lent for minutes and has no compilers it goes through all that
was built elsewhere. `llsa_gen.tuning` chooses for the machine that it runs on: it leaves out what a model says is slow,
builds, judges every schedule by the reference, and records which to load. Both compare and time kernels by
`llsa_gen.evidence.places`.
"""

from __future__ import annotations

from dataclasses import asdict

import torch

from llsa_gen.codegen import KernelInstance, KernelPackage, render
from llsa_gen.evidence.passes import passes
from llsa_gen.evidence.places import Place, places_of
from llsa_gen.evidence.prebuilt import by_worth, candidates, main_spec
from llsa_gen.evidence.setting import Results, Setting
from llsa_gen.jit import Kernel, load_kernel
from llsa_gen.schedule import Schedule
from llsa_gen.timing import Call, Rounds, in_turns
from llsa_gen.workloads import clustered_qkv

SHAPE = (1, 6, 65_536)
TINY = (1, 2, 300)

Loaded = tuple[Schedule, Kernel]


def work(setting: Setting) -> Results:
    """Yields, per kernel and schedule, its time or why it is left out, the best of every kernel first."""
    package = render(main_spec())
    qkv = clustered_qkv(package.spec, *(TINY if setting.tiny else SHAPE), device=setting.device)
    with torch.inference_mode():
        places = places_of(tuple(passes(package.spec, qkv, setting.runs)))
        rounds = Rounds(count=2) if setting.tiny else Rounds(setting.limit / (2 * len(places)), count=20)
        for kernel in by_worth(package.kernels_for(setting.runs)):
            if kernel.name not in places:  # of long lists, which tiny problems have not
                continue
            yield from _timed(package, kernel, places[kernel.name], setting, rounds)


def _timed(package: KernelPackage, kernel: KernelInstance, place: Place, setting: Setting, rounds: Rounds) -> Results:
    shape = list(place.run.tensors["q"].shape[:3])
    said = {"kernel": kernel.name, "stage": place.stage.name, "timed": place.timed, "shape": shape}
    solved, expected = dict(kernel.schedules)[setting.runs], place.results()
    right: dict[str, Schedule] = {}
    calls: dict[str, Call] = {}
    for schedule, tried in _in_cache(package, kernel, setting.runs):
        changed = place.with_kernel(tried)
        problem = changed.disagreement(expected)
        name = f"rows{schedule.rows}_keys{schedule.keys}_threads{schedule.threads}_stages{schedule.stages}"
        if problem is None:
            right[name] = schedule
            calls[name] = changed.call()
        else:
            yield said | {"schedule": asdict(schedule), "right": False, "why": problem}
    times = in_turns(calls, rounds, setting.device)
    for name, found in sorted(times.items(), key=lambda item: item[1]["median"]):
        yield said | {"schedule": asdict(right[name]), "right": True, "solved": right[name] == solved, "seconds": found}


def _in_cache(package: KernelPackage, kernel: KernelInstance, target: str) -> list[Loaded]:
    found = []
    for schedule in candidates(package, kernel, target):
        loaded = load_kernel(package, kernel.with_schedule(target, schedule), target)
        if loaded is not None:
            found.append((schedule, loaded))
    return found
