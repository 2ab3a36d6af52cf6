# SPDX-License-Identifier: Apache-2.0
"""Run: all kernels of a spec, those with the most work first, then the passes that changed, before and after."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llsa_gen.bench.dense import dense_of
from llsa_gen.bench.judge import examine
from llsa_gen.codegen import KernelPackage, render
from llsa_gen.evidence.passes import Pass, passes
from llsa_gen.evidence.places import places_of
from llsa_gen.ir.sizes import short_lists
from llsa_gen.ir.types import Direction
from llsa_gen.jit import Machine, build, machine_of
from llsa_gen.jit.lower_lanes import LanesCompiler
from llsa_gen.jit.records import Record, write
from llsa_gen.ops.calls import forget_passes
from llsa_gen.ops.execute import run_steps
from llsa_gen.ops.launch import target_of
from llsa_gen.tuning.oracle import Oracle, with_kernels
from llsa_gen.tuning.prune import Candidate, Choice, choices, idle
from llsa_gen.tuning.request import Request, check
from llsa_gen.tuning.trials import MARGIN, Contest, Workshop, begin, known
from llsa_gen.workloads import Qkv, clustered_qkv

Step = Callable[..., None]
"""``step(text, number=1, total=1)``."""
Times = Mapping[str, Mapping[str, float]]
"""Seconds of ``default`` and ``tuned``: ``median`` and ``lowest``."""
DENSE_ROWS = 64
"""Query rows of dense attention that the last check looks at too."""


def run(request: Request, step: Step) -> dict[str, Any]:
    """Tries the schedules of all kernels and records which to take.

    Args:
        request: What to tune, and for how long.
        step: Called before every trial.

    Returns:
        Plain data: machine, size, ``kernels`` with their trials, ``passes`` with the default's time and the tuned
        one's, empty where all kernels took the default, ``taken_back`` with the passes that became slower and by which
        factor, so that their kernels have the default again, ``check`` of the tuned op, and whether all of it is
        ``complete``.

    Raises:
        InputError, UnsupportedError: As `check`.
        InfeasibleError: No schedule fits the target.
        OutputError: A record cannot be stored.
        ToolMissingError, CompileError: The default kernels cannot be built.
    """
    folder, started = check(request), time.monotonic()
    with _threads(request), torch.no_grad():
        package, machine, found = _choices(request)
        records = [begin(choice, request, package, machine, folder) for choice in found]
        step("building the default kernels and making inputs")
        both = tuple(passes(package.spec, _inputs(request, package), request.target, records=False))
        with LanesCompiler() as lanes:
            end = started + 60 * request.minutes
            shop = Workshop(request, package, machine, folder, _oracle(request, package), places_of(both), lanes, end)
            records = _hold_all(shop, found, records, step)
            step("comparing whole passes")
            compared = {one.direction: _compared(shop, one, found, records) for one in both}
        records, slower = _without_slower(both, compared, records, folder)
        step("checking the tuned op")
        checked = _checked(request, package)
        if not checked["right"]:
            records = _taken_back(records, {record.kernel for record in records}, folder)
    return {
        **_head(request, package, machine, folder),
        "dry_run": False,
        "complete": all(record.complete for record in records),
        "seconds": round(time.monotonic() - started, 1),
        "kernels": [_told(choice, record, folder) for choice, record in zip(found, records, strict=True)],
        "passes": compared,
        "taken_back": [[direction, _slower(compared[direction])] for direction in slower],
        "check": checked,
    }


def dry_run(request: Request) -> dict[str, Any]:
    """What would be tried, kernel by kernel; nothing is built, timed or written. Errors as `run`."""
    folder = check(request)
    with _threads(request):
        package, machine, found = _choices(request)
        records = [known(choice, request, package, machine, folder)[0] for choice in found]
    kernels = [_told(choice, record, folder) for choice, record in zip(found, records, strict=True)]
    return {**_head(request, package, machine, folder), "dry_run": True, "kernels": kernels}


@contextmanager
def _threads(request: Request) -> Iterator[None]:
    """Lets torch have as many threads as were asked for."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _choices(request: Request) -> tuple[KernelPackage, Machine, tuple[Choice, ...]]:
    package, machine = render(request.spec), machine_of(request.target)
    package.require_feasible(request.target)
    return package, machine, choices(package, request.target, machine, request.tokens, request.heads)


def _inputs(request: Request, package: KernelPackage) -> Qkv:
    return clustered_qkv(package.spec, 1, request.heads, request.tokens, device=request.device)


def _oracle(request: Request, package: KernelPackage) -> Oracle:
    """The judge of kernels, which knows which lists are inverted in one launch at the length of the run."""
    short = short_lists(package.spec, request.tokens)
    return Oracle(package.spec, request.target, request.device, short=short)


def _hold_all(shop: Workshop, found: Sequence[Choice], records: Sequence[Record], step: Step) -> list[Record]:
    """The contests of all kernels, one after the other."""
    total, done, after = sum(len(choice.kept) for choice in found), 0, []
    for choice, record in zip(found, records, strict=True):

        def say(text: str, place: int, before: int = done, name: str = choice.kernel.name) -> None:
            step(f"{name}: {text}", min(before + place, total), total)

        after.append(Contest(shop, choice, record, say).hold())
        done += len(choice.kept)
    return after


def _kernels_of(one: Pass) -> set[str]:
    """The names of the kernels of a pass."""
    return {step.kernel.name for step in one.steps}


def _compared(
    shop: Workshop, one: Pass, found: Sequence[Choice], records: Sequence[Record]
) -> dict[str, dict[str, float]]:
    """Seconds of a whole pass with the default schedules and those taken, in turn; empty where all are defaults."""
    if not _kernels_of(one) & {record.kernel for record in records if record.chosen is not None}:
        return {}
    kinds = {"default": [choice.default for choice in found]}
    kinds["tuned"] = [record.chosen or choice.default for choice, record in zip(found, records, strict=True)]
    calls = {}
    for name, schedules in kinds.items():
        made = [shop.load(choice, schedule) for choice, schedule in zip(found, schedules, strict=True)]
        steps = with_kernels(one, [kernel for kernel in made if not isinstance(kernel, str)])
        calls[name] = partial(run_steps, steps, replace(one.run, tensors=dict(one.run.tensors)))
    return shop.timed(calls, 4 * shop.request.seconds)


def _without_slower(
    both: Sequence[Pass], compared: Mapping[Direction, Times], records: Sequence[Record], folder: Path
) -> tuple[list[Record], list[Direction]]:
    """Takes back what this run chose for passes that became slower by it, and names them."""
    changed = {record.kernel for record in records if record.chosen is not None and not record.kept}
    kernels = {one.direction: changed & _kernels_of(one) for one in both}
    slower = [name for name, touched in kernels.items() if touched and not _is_worth_it(compared[name])]
    return _taken_back(records, set().union(*(kernels[name] for name in slower)), folder), slower


def _is_worth_it(times: Times) -> bool:
    """Whether a pass is not slower than it was."""
    return _slower(times) <= 1 + MARGIN


def _slower(times: Times) -> float:
    """How many times as long a pass takes as it did: by the lowest times or the medians, whichever says less.

    Other work on the machine raises one of them at a time; what is slower is slower by both.
    """
    return min(times["tuned"][kind] / times["default"][kind] for kind in ("lowest", "median"))


def _taken_back(records: Sequence[Record], kernels: Collection[str], folder: Path) -> list[Record]:
    """Records of which those of some kernels choose the default."""
    after = [replace(one, chosen=None) if one.kernel in kernels else one for one in records]
    for one, before in zip(after, records, strict=True):
        if one != before:
            write(one, folder)
    return after


def _checked(request: Request, package: KernelPackage) -> dict[str, Any]:
    """Calls the public functions, which take the schedules on record, and judges some rows at the length of the run."""
    if target_of(torch.device(request.device)) != request.target:
        return {"right": True, "why": [], "rows": 0}
    if request.device == "cpu":
        build(package.spec, request.target)  # also what was not tuned: calls prefer an instruction set that is whole
    forget_passes()
    qkv = _inputs(request, package)
    found = examine(package.spec, qkv, dense_of(qkv, DENSE_ROWS))
    return {name: found[name] for name in ("right", "why", "rows")}


def _head(request: Request, package: KernelPackage, machine: Machine, folder: Path) -> dict[str, Any]:
    size = request.size
    return {
        "slug": package.slug,
        "target": request.target,
        "machine": machine.to_data(),
        "size": size,
        "folder": str(folder),
        "idle": list(idle(package, request.target, request.tokens)),
    }


def _told(choice: Choice, record: Record, folder: Path) -> dict[str, Any]:
    """One kernel as plain data."""
    return {
        "kernel": choice.kernel.name,
        "share": choice.share,
        "record": str(folder / record.name),
        "default": asdict(choice.default),
        "chosen": None if record.chosen is None else asdict(record.chosen),
        "complete": record.complete,
        "candidates": [_candidate(one, record) for one in choice.candidates],
    }


def _candidate(one: Candidate, record: Record) -> dict[str, Any]:
    trial = record.trial_of(one.schedule)
    data: dict[str, Any] = {"schedule": asdict(one.schedule), "model": one.model, "left_out": one.why}
    if trial is None:
        return {**data, "tried": False}
    return {**data, "tried": True, "ratio": trial.ratio, **{k: v for k, v in asdict(trial).items() if k != "schedule"}}
