# SPDX-License-Identifier: Apache-2.0
"""Trials: the schedules of one kernel, each built, checked, and timed in turn with the default."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from llsa_gen.codegen import KernelPackage
from llsa_gen.errors import CompileError, InternalError, StaleError, explain
from llsa_gen.evidence.places import Place
from llsa_gen.jit import Kernel, Machine, build_kernel, digest_without_schedule, load_kernel, toolchain
from llsa_gen.jit.build import AT_ONCE
from llsa_gen.jit.lower_lanes import LanesCompiler
from llsa_gen.jit.records import Record, Trial, file_name, read, write
from llsa_gen.schedule import Schedule
from llsa_gen.targets import get_target
from llsa_gen.timing import Call, Rounds, in_turns
from llsa_gen.tuning.oracle import Oracle, fresh_memory
from llsa_gen.tuning.prune import Choice
from llsa_gen.tuning.request import Request

MARGIN = 0.03
"""A schedule takes the place of the default where it is faster by more than that, which noise is not."""
LEAST_ROUNDS = 7
"""Turns of every call, however long they take: a median of fewer is no better than one of them."""
FINALISTS = 3
"""Schedules that are timed once more, all in turn, before one is taken."""


@dataclass(frozen=True)
class Workshop:
    """What all trials share.

    Attributes:
        request: What was asked for.
        package: The package, with the default schedules.
        machine: This one.
        folder: Of the records.
        oracle: The judge of kernels.
        places: Where each kernel is timed, by its name.
        lanes: Processes of TVM.
        end: When no more trials begin, on the monotonic clock.
    """

    request: Request
    package: KernelPackage
    machine: Machine
    folder: Path
    oracle: Oracle
    places: Mapping[str, Place]
    lanes: LanesCompiler
    end: float

    @property
    def is_over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() > self.end

    def load(self, choice: Choice, schedule: Schedule) -> Kernel | str:
        """A kernel with a schedule, built when it is missing; or what a compiler said of it."""
        kernel = choice.kernel.with_schedule(self.request.target, schedule)
        try:
            build_kernel(self.package, kernel, self.request.target, self.lanes)
        except CompileError as error:
            return f"a compiler refused it: {str(error)[-300:]}"
        found = load_kernel(self.package, kernel, self.request.target)
        if found is None:
            what, where = "a kernel that was built is gone from the cache", choice.kernel.name
            raise InternalError(explain(what, where=where, hint="tune again; what is finished is kept"))
        return found

    def load_all(self, choice: Choice, schedules: list[Schedule]) -> dict[Schedule, Kernel | str]:
        """Kernels with some schedules, two built at a time; those that the time does not suffice for are left out."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = pool.map(lambda each: None if self.is_over else self.load(choice, each), schedules)
            return {each: made for each, made in zip(schedules, found, strict=True) if made is not None}

    def timed(self, calls: Mapping[str, Call], seconds: float) -> dict[str, dict[str, float]]:
        """Median and lowest seconds of calls that take turns."""
        times = in_turns(calls, Rounds(seconds, least=LEAST_ROUNDS), self.request.device)
        return {name: {kind: found[kind] for kind in ("median", "lowest")} for name, found in times.items()}


def begin(choice: Choice, request: Request, package: KernelPackage, machine: Machine, folder: Path) -> Record:
    """The record to go on with, stored, so that it is known early whether that can be done.

    One of other inputs stays in its place until there is a first trial.

    Raises:
        OutputError: It cannot be stored.
    """
    record, older = known(choice, request, package, machine, folder)
    write(record if older is None else older, folder)
    return record


def known(
    choice: Choice, request: Request, package: KernelPackage, machine: Machine, folder: Path
) -> tuple[Record, Record | None]:
    """The record of a run with the same inputs, or a new one, with that whose place it is to take.

    The new one keeps what the older one chose until all schedules are tried. A broken record counts as none.
    """
    identity = digest_without_schedule(package, choice.kernel, get_target(request.target))
    path = folder / file_name(choice.kernel.name, identity, machine)
    try:
        found = read(path)
    except StaleError:
        found = None
    if found is not None and found.size == request.size and not request.again:
        return found, None
    begun = Record(choice.kernel.name, identity, machine, _software(), request.size)
    return (begun, None) if found is None else (replace(begun, chosen=found.chosen, kept=True), found)


@dataclass
class Contest:
    """The schedules of one kernel, tried one after the other; `record` is on disk after each.

    Attributes:
        shop: What trials share.
        choice: The kernel and its schedules.
        record: What is known so far.
        say: Told what is tried now, and its place among the schedules.
    """

    shop: Workshop
    choice: Choice
    record: Record
    say: Callable[[str, int], None]

    @property
    def left(self) -> list[Schedule]:
        """Schedules that were not tried yet."""
        return [each for each in self.choice.kept if self.record.trial_of(each) is None]

    def hold(self) -> Record:
        """Tries what is left and takes the best; ends early where the time is up."""
        if self.shop.is_over or (self.record.complete and not self.left):
            return self.record
        self.say(f"building {len(self.left)} schedules", 1)
        base = self._base()
        if not self.shop.oracle.sees(base):
            return self._leave()
        loaded = self.shop.load_all(self.choice, self.left)
        for schedule, made in loaded.items():
            if self.shop.is_over:
                break
            self.say(_text(schedule), self.choice.kept.index(schedule) + 1)
            self._note(self.record.with_trial(self._tried(schedule, made, base)))
        if not self.left:
            self.say("the best once more", len(self.choice.kept))
            self._finish(base)
        elif self.record.trials and not self.record.kept:
            self._note(replace(self.record, chosen=self._best(self.record.trials)))
        return self.record

    def _leave(self) -> Record:
        """Leaves a kernel with the default, because nothing could tell a wrong one."""
        record = self.record
        for schedule in self.left:
            record = record.with_trial(Trial(schedule, why="no input of the check gives this kernel work"))
        self._note(replace(record, chosen=None, kept=False, complete=True))
        return self.record

    def _base(self) -> Kernel:
        """The default kernel.

        Raises:
            InternalError: It is wrong, so that nothing can be compared with it.
        """
        found = self.shop.load(self.choice, self.choice.default)
        why = found if isinstance(found, str) else self.shop.oracle.wrong(found)
        if isinstance(found, str) or why:
            what = "the default schedule of a kernel gives wrong results"
            raise InternalError(explain(what, where=self.choice.kernel.name, value=why))
        return found

    def _tried(self, schedule: Schedule, made: Kernel | str, base: Kernel) -> Trial:
        if isinstance(made, str):
            return Trial(schedule, why=made)
        why = self.shop.oracle.wrong(made) or self._differs(made, base)
        if why:
            return Trial(schedule, why=f"WRONG: {why}")
        times = self.shop.timed({"default": self._call(base), "this": self._call(made)}, self.shop.request.seconds)
        return Trial(schedule, times["this"], times["default"])

    def _differs(self, made: Kernel, base: Kernel) -> str:
        """How its results at the length that is timed differ from the default's; empty where they do not."""
        expected = self._place.with_kernel(base).results()
        with fresh_memory():
            return self._place.with_kernel(made).disagreement(expected) or ""

    @property
    def _place(self) -> Place:
        """Where the kernel is timed."""
        return self.shop.places[self.choice.kernel.name]

    def _call(self, kernel: Kernel) -> Call:
        return self._place.with_kernel(kernel).call()

    def _finish(self, base: Kernel) -> None:
        """Times the best few once more, all in turn, and takes one."""
        ranked = sorted((trial for trial in self.record.trials if trial.ratio is not None), key=_ratio)[:FINALISTS]
        calls = {"default": self._call(base)}
        for trial in ranked:
            made = self.shop.load(self.choice, trial.schedule)
            assert not isinstance(made, str), "it was timed before"
            calls[_text(trial.schedule)] = self._call(made)
        times = self.shop.timed(calls, 2 * self.shop.request.seconds)
        finals = [Trial(one.schedule, times[_text(one.schedule)], times["default"]) for one in ranked]
        record = self.record
        for trial in finals:
            record = record.with_trial(trial)
        self._note(replace(record, chosen=self._best(finals), kept=False, complete=True))

    def _best(self, trials: Sequence[Trial]) -> Schedule | None:
        """The fastest of some schedules; None where the default is as good."""
        best = min(trials, key=_ratio, default=None)
        return best.schedule if best is not None and _ratio(best) < 1 - MARGIN else None

    def _note(self, record: Record) -> None:
        write(record, self.shop.folder)
        self.record = record


def _ratio(trial: Trial) -> float:
    ratio = trial.ratio
    return float("inf") if ratio is None else ratio


def _text(schedule: Schedule) -> str:
    """A schedule in words."""
    return ", ".join(f"{name} {value}" for name, value in asdict(schedule).items() if value)


def _software() -> dict[str, str]:
    """What kernels are built and run with."""
    found = toolchain.describe()
    tools = {"cxx": found.cxx, "nvcc": found.nvcc}
    versions = {"torch": found.torch, "tvm": found.tvm, "tilelang": found.tilelang}
    return {
        **{name: version for name, version in versions.items() if version},
        **{name: tool.version for name, tool in tools.items() if tool},
    }
