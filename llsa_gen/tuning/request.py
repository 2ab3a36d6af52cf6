# SPDX-License-Identifier: Apache-2.0
"""What a tuner is asked for, and the checks that come before anything is computed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from llsa_gen.bench import request as bench
from llsa_gen.errors import InputError, UnsupportedError, explain
from llsa_gen.jit import toolchain
from llsa_gen.jit.records import require_dir
from llsa_gen.spec import Spec
from llsa_gen.targets import get_target

DEFAULT_TOKENS = 16_384
DEFAULT_HEADS = 2
DEFAULT_MINUTES = 15.0
DEFAULT_SECONDS = 1.5
MOST_MINUTES = 7 * 24 * 60
MOST_THREADS = 1024


@dataclass(frozen=True)
class Request:
    """One run of the tuner.

    Attributes:
        spec: Whose kernels are tuned, its depth known.
        target: The machine that runs them: this one.
        tokens: Length of the inputs.
        heads: Heads of the inputs.
        minutes: No schedule is begun after this.
        seconds: How long a schedule is timed.
        threads: Threads of a CPU; None for as many as torch takes.
        again: Whether what is recorded for these inputs is measured anew.
    """

    spec: Spec
    target: str = "cpu"
    tokens: int = DEFAULT_TOKENS
    heads: int = DEFAULT_HEADS
    minutes: float = DEFAULT_MINUTES
    seconds: float = DEFAULT_SECONDS
    threads: int | None = None
    again: bool = False

    @property
    def device(self) -> str:
        """Where the kernels run, as torch calls it."""
        return "cuda" if get_target(self.target).is_cuda else "cpu"

    @property
    def size(self) -> dict[str, int]:
        """The size of the inputs."""
        return {"batch": 1, "heads": self.heads, "tokens": self.tokens}


def check(request: Request) -> Path:
    """Finds out whether all of it can be done, and returns the folder of the records.

    Raises:
        InputError: A number is out of its range, records are switched off, or the memory is too small.
        UnsupportedError: Kernels of the target do not run here, or their speed says nothing.
    """
    _check_target(request.target)
    _check_number("tokens", request.tokens, bench.MOST_TOKENS)
    _check_number("heads", request.heads, bench.MOST_HEADS)
    if request.threads is not None:
        _check_number("threads", request.threads, MOST_THREADS)
    _check_time("minutes", request.minutes, MOST_MINUTES)
    _check_time("seconds", request.seconds, bench.MOST_SECONDS)
    if request.device == "cpu":
        _check_memory(request)
    return require_dir()


def _check_target(target: str) -> None:
    machine = get_target(target)
    if machine.kind == "c":
        what, hint = "the target c is there for tests, and its speed says nothing of a GPU", "tune --target cpu"
        raise UnsupportedError(explain(what, where="--target", value=target, allowed="cpu, or a GPU here", hint=hint))
    can_run, why = toolchain.describe().can_run(machine)
    if not can_run:
        what = f"schedules are timed on the machine that they are for: {why}"
        hint = f"tune {target} where such a GPU is, or tune --target cpu"
        raise UnsupportedError(explain(what, where="--target", value=target, allowed="what runs here", hint=hint))


def _check_number(name: str, value: object, highest: int) -> None:
    if type(value) is int and 1 <= value <= highest:
        return
    allowed, hint = f"whole numbers from 1 to {highest:,}", f"leave --{name} out for the default"
    raise InputError(explain(f"{name} is out of its range", where=f"--{name}", value=value, allowed=allowed, hint=hint))


def _check_time(name: str, value: float, highest: float) -> None:
    if math.isfinite(value) and 0 < value <= highest:
        return
    allowed, hint = f"more than 0, up to {highest:,}", f"leave --{name} out for the default"
    raise InputError(explain(f"{name} is out of its range", where=f"--{name}", value=value, allowed=allowed, hint=hint))


def _check_memory(request: Request) -> None:
    asked = bench.Request(request.spec, (request.tokens,), request.heads, request.seconds, Path())
    needed, there = bench.memory_of(asked, request.tokens), bench.available_memory()
    if needed <= there:
        return
    what = f"{request.tokens:,} tokens with {request.heads} heads take about {needed / 2**30:.1f} GiB"
    allowed = f"what takes up to {there / 2**30:.1f} GiB, which is available now"
    hint = "lower --tokens or --heads"
    raise InputError(explain(what, where="--tokens", value=request.tokens, allowed=allowed, hint=hint))
