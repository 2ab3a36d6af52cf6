#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Looks for a wrong number for some minutes, with the strategies of the property tests, and keeps what it finds.

    python tools/fuzz.py --minutes 30                  # every check in turn
    python tools/fuzz.py --minutes 5 --only plan_gradients_fp64 plan_selects
    python tools/fuzz.py --replay fuzz/failures/X.json # one failure again

A case that fails is made smaller, saved in OUT/failures with the command that tries it again, and its check is left
alone afterwards. OUT/examples is hypothesis' database: the next run with this OUT begins with what failed. Exit
status: 0 nothing found, 1 something found, 2 a wrong option, 6 OUT cannot be written, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import hypothesis
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis.database import DirectoryBasedExampleDatabase

from llsa_gen.errors import InputError, LlsaError, did_you_mean, explain
from tools.campaign.cases import Case, Failure
from tools.campaign.checks import CHECKS
from tools.campaign.run import EXIT_FOUND, Progress, attempt, ended_by, failures_folder, replay, report

EXAMPLES = 40
"""Cases of one check before the next has its turn."""


class _Broken(Exception):
    """Tells hypothesis that a case fails."""


def hunt(check: str, seed: int, until: float, out: Path) -> tuple[int, Failure | None]:
    """Draws cases for one check.

    Args:
        check: Its name.
        seed: Of what is drawn.
        until: When to stop, by `time.monotonic`; a failure is made smaller beyond that.
        out: Folder of the database.

    Returns:
        How many cases were tried, and the smallest that fails.
    """
    found: list[Failure] = []
    tried = 0

    def holds(case: Case) -> None:
        nonlocal tried
        if not found and time.monotonic() > until:
            return
        tried += 1
        failure = attempt(check, case)
        if failure is not None:
            found.append(failure)
            raise _Broken(failure.error)

    with contextlib.suppress(_Broken):
        _as_property(holds, check, seed, out)()
    return tried, found[-1] if found else None  # hypothesis tries the smallest last


def _as_property(holds: Callable[[Case], None], check: str, seed: int, out: Path) -> Callable[[], None]:
    """The check as a test of hypothesis, with a database of its own."""
    options = settings(
        max_examples=EXAMPLES,
        database=DirectoryBasedExampleDatabase(out / "examples" / check),
        deadline=None,
        derandomize=False,
        report_multiple_bugs=False,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
        verbosity=hypothesis.Verbosity.quiet,
    )
    seeded = hypothesis.seed(seed)(given(CHECKS[check].drawn)(holds))
    wrapped: Callable[[], None] = options(seeded)  # a seed that comes after them takes the database away
    return wrapped


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--minutes", type=float, default=10.0, metavar="M", help="how long, at least 0.01 (default: 10)")
    made.add_argument("--seed", type=int, default=None, help="of what is drawn (default: another one every time)")
    made.add_argument("--only", nargs="+", metavar="CHECK", help=f"some of: {' '.join(CHECKS)} (default: all)")
    made.add_argument("--out", type=Path, default=Path("fuzz"), metavar="DIR", help="folder to write (default: fuzz)")
    made.add_argument("--replay", type=Path, metavar="FILE", help="try a saved failure again, and nothing else")
    return made


def check_options(chosen: argparse.Namespace) -> None:
    """Refuses options that mean nothing.

    Raises:
        InputError: One is out of range, or names no check.
    """
    if not (math.isfinite(chosen.minutes) and chosen.minutes >= 0.01):
        what, hint = (
            "there is no time to look for anything",
            "give the minutes that it may take, for example --minutes 10",
        )
        allowed = "a number of minutes, 0.01 or more"
        raise InputError(explain(what, where="--minutes", value=chosen.minutes, allowed=allowed, hint=hint))
    for name in chosen.only or ():
        if name not in CHECKS:
            hint = did_you_mean(name, CHECKS) or "python tools/fuzz.py --help lists the checks"
            raise InputError(explain("there is no such check", where="--only", value=name, allowed=CHECKS, hint=hint))
    if chosen.seed is not None and not 0 <= chosen.seed < 2**32:
        hint = "leave it out for another one every time"
        raise InputError(
            explain("the seed is out of range", where="--seed", value=chosen.seed, allowed="0 to 2**32 - 1", hint=hint)
        )


def fuzz(chosen: argparse.Namespace) -> int:
    """Runs the checks in turn until the time is over; the exit status."""
    check_options(chosen)
    folder, progress = failures_folder(chosen.out), Progress()
    torch.set_num_threads(1)  # the cases are small
    first = time.time_ns() % 2**31 if chosen.seed is None else chosen.seed
    until = time.monotonic() + 60.0 * chosen.minutes
    checks, tried, failures = list(chosen.only or CHECKS), 0, 0
    for turn in count():
        if time.monotonic() > until or not checks:
            break
        check = checks[turn % len(checks)]
        cases, failure = hunt(check, first + turn, until, chosen.out)
        tried += cases
        if failure is not None:
            failures += 1
            checks.remove(check)
            report(failure, folder)
        progress.say(f"{tried} cases, {failures} wrong; last: {check}", always=failure is not None)
    print(f"{tried} cases in {progress.seconds:.0f} s, {failures} wrong, first seed {first}")
    return EXIT_FOUND if failures else 0


def main(arguments: list[str] | None = None) -> int:
    """Reads the options and runs; the exit status."""
    chosen = parser().parse_args(arguments)
    try:
        return fuzz(chosen) if chosen.replay is None else replay(chosen.replay)
    except (KeyboardInterrupt, LlsaError, OSError) as error:
        return ended_by(error)


if __name__ == "__main__":
    sys.exit(main())
