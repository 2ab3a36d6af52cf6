# SPDX-License-Identifier: Apache-2.0
"""What the two searches share: where failures go, progress, and trying one case again."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from llsa_gen.errors import EXIT_OS_ERROR, InputError, LlsaError, OutputError, explain
from tools.campaign.cases import Case, Failure
from tools.campaign.checks import CHECKS

EXIT_FOUND = 1
EXIT_INTERRUPTED = 130
SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """A line on stderr every few seconds."""

    def __init__(self) -> None:
        self._started = self._last = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._started

    def say(self, line: str, *, always: bool = False) -> None:
        """Prints a line with the time in front, unless the last one is young."""
        now = time.monotonic()
        if always or now - self._last >= SECONDS_BETWEEN_LINES:
            self._last = now
            print(f"[{self.seconds:6.0f} s] {line}", file=sys.stderr, flush=True)


def failures_folder(out: Path) -> Path:
    """OUT/failures, made and tried before anything runs.

    Raises:
        OutputError: It cannot be written.
    """
    folder = out / "failures"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / ".trial"
        trial.touch()
        trial.unlink()
    except OSError as error:
        what, hint = f"the folder cannot be written: {error.strerror}", "give another folder with --out DIR"
        allowed = "a folder that can be made and written"
        raise OutputError(explain(what, where="--out", value=str(out), allowed=allowed, hint=hint)) from error
    return folder


def attempt(check: str, case: Case) -> Failure | None:
    """Runs a check on a case; what it raised, if it did."""
    try:
        CHECKS[check].run(case)
    except Exception as error:  # noqa: BLE001  (whatever it is, it is what is looked for)
        return Failure.of(check, case, error)
    return None


def report(failure: Failure, folder: Path) -> None:
    """Saves a failure and prints how to see it again."""
    path = failure.save(folder)
    print(f"{failure.check}: {failure.error}\n  {failure.case}\n  again: python tools/fuzz.py --replay {path}")


def replay(path: Path) -> int:
    """Tries a saved failure again; the exit status."""
    saved = Failure.load(path)
    if saved.check not in CHECKS:
        what, hint = "there is no such check any more", "replay with the version that wrote the file"
        raise InputError(explain(what, where=str(path), value=saved.check, allowed=tuple(CHECKS), hint=hint))
    now = attempt(saved.check, saved.case)
    print(f"{saved.check}: {saved.case}\n  then: {saved.error}\n  now:  {now.error if now else 'holds'}")
    return EXIT_FOUND if now else 0


def ended_by(error: BaseException) -> int:
    """Tells what ended a search; the exit status."""
    if isinstance(error, KeyboardInterrupt):
        print("interrupted: what was found until now is saved", file=sys.stderr)
        return EXIT_INTERRUPTED
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code if isinstance(error, LlsaError) else EXIT_OS_ERROR
