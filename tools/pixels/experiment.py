# SPDX-License-Identifier: Apache-2.0
"""The experiment: every arm from every seed, then what came out of it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Protocol

import torch
from torch import Tensor

from llsa_gen.errors import InputError, explain
from tools.pixels.options import Options
from tools.pixels.photos import Crops, regions
from tools.pixels.trial import Curves, Data, Trial, prepare_data

Asked = Callable[[], bool]
"""Whether the run shall end after the current step."""


class Watcher(Protocol):
    """Who is told what happens."""

    def begin(self, arm: str, seed: int, step: int) -> None:
        """A trial starts, or goes on after a number of steps."""

    def advance(self, loss: float) -> None:
        """A training step is done."""

    def measured(self, arm: str, seed: int, step: int, loss: float) -> None:
        """The mean held-out loss is known after a number of steps."""


@dataclass(frozen=True)
class Outcome:
    """What a run found.

    Attributes:
        options: The run.
        curves: By arm and seed.
        parameters: Numbers trained in one trial.
        real: Some held-out crops, [M,size,size,3] from -1 to 1.
        samples: By arm: images drawn from the trial of the first seed, likewise.
    """

    options: Options
    curves: dict[tuple[str, int], Curves]
    parameters: int
    real: Tensor
    samples: dict[str, Tensor]


def run(options: Options, *, resume: bool, watcher: Watcher, asked: Asked) -> Outcome:
    """Trains all trials, seed after seed, and draws samples.

    Args:
        options: What to run.
        resume: Whether to go on from checkpoints in ``options.out``.
        watcher: Is told about progress.
        asked: Looked at between steps; when true, a checkpoint is written and the run ends.

    Raises:
        InputError: There are checkpoints though the run is not resumed, or they do not fit.
        KeyboardInterrupt: ``asked`` said so; checkpoints are up to date.
    """
    _check_folder(options, resume=resume)
    if options.device == "cuda":
        _make_deterministic()
    train, held_out = (Crops(source, options.size) for source in regions())
    data = prepare_data(train, held_out, options.held_out_count)
    curves, samples, parameters = {}, {}, 0
    for seed in range(options.seeds):
        for arm in options.arms:
            trial = Trial(options, data, arm, seed)
            _finish(trial, watcher, asked)
            curves[arm, seed] = trial.curves
            parameters = sum(parameter.numel() for parameter in trial.model.parameters())
            if seed == 0:
                samples[arm] = trial.sample()
    return Outcome(options, curves, parameters, _real(data, options.sample_count), samples)


def _check_folder(options: Options, *, resume: bool) -> None:
    """Refuses to mix two runs in one folder, and finds out early whether it can be written."""
    folder = options.out / "checkpoints"
    if not resume and any(folder.glob("*.pt")):
        what, hint = "there is a run in this folder", "--resume goes on with it, another --out starts a new one"
        raise InputError(explain(what, where="--out", value=str(options.out), hint=hint))
    folder.mkdir(parents=True, exist_ok=True)


def _make_deterministic() -> None:
    """Makes a GPU repeat its results, as a CPU does anyway; cuBLAS reads the variable when it starts."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)


def _finish(trial: Trial, watcher: Watcher, asked: Asked) -> None:
    """Trains a trial to its end, from its checkpoint if there is one."""
    trial.restore()
    options, watched = trial.options, (trial.arm, trial.seed)
    if trial.step > options.steps:
        what, hint = "this trial was trained for more steps already", f"--steps {trial.step}"
        raise InputError(explain(what, where="--steps", value=options.steps, allowed=f">= {trial.step}", hint=hint))
    watcher.begin(*watched, trial.step)
    while trial.step < options.steps:
        if asked():
            trial.save()
            raise KeyboardInterrupt
        watcher.advance(trial.train_step())
        if trial.step % options.evaluate_every == 0:
            _measure(trial, watcher)
    if not trial.curves.held_out or trial.curves.held_out[-1][0] != trial.step:
        _measure(trial, watcher)


def _measure(trial: Trial, watcher: Watcher) -> None:
    losses = trial.measure()
    trial.save()
    watcher.measured(trial.arm, trial.seed, trial.step, sum(losses) / len(losses))


def _real(data: Data, count: int) -> Tensor:
    """Held-out crops to show, [count,size,size,3] (fewer where there are fewer)."""
    return data.images(data.held_out[:count])


@contextmanager
def postponed_interrupts() -> Iterator[Asked]:
    """Lets the first Ctrl-C wait for the end of a step; the second one ends the program at once.

    Yields:
        A function that says whether there was a first one.
    """
    seen = threading.Event()

    def note(signal_number: int, frame: FrameType | None) -> None:
        if seen.is_set():
            signal.default_int_handler(signal_number, frame)
        seen.set()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield seen.is_set
    finally:
        signal.signal(signal.SIGINT, before)
