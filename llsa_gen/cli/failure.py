# SPDX-License-Identifier: Apache-2.0
"""Failures: what an exception means to somebody at a terminal, and the exit status of the process."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import click

from llsa_gen.errors import EXIT_OS_ERROR, LlsaError, explain

DEBUG_VARIABLE = "LLSA_GEN_DEBUG"
"""Environment variable: ``1`` shows the traceback of every error."""

EXIT_OK = 0
EXIT_DIFFERENT = 1
EXIT_USAGE = 2
EXIT_INFEASIBLE = 3
EXIT_TOOL = 4
EXIT_STALE = 5
EXIT_OUTPUT = EXIT_OS_ERROR
EXIT_INTERNAL = 70
EXIT_INTERRUPTED = 130

EXIT_CODES = (
    (EXIT_OK, "ok"),
    (EXIT_DIFFERENT, "check found differences"),
    (EXIT_USAGE, "bad input or usage"),
    (EXIT_INFEASIBLE, "infeasible: no schedule fits the target"),
    (EXIT_TOOL, "a compiler or another tool failed or is missing"),
    (EXIT_STALE, "a generated file is stale or broken"),
    (EXIT_OUTPUT, "output could not be written"),
    (EXIT_INTERNAL, "internal error"),
    (EXIT_INTERRUPTED, "interrupted"),
)
"""Exit statuses of ``llsa-gen`` with their meaning."""


@dataclass(frozen=True)
class Failure:
    """How an error ends the program.

    Attributes:
        kind: Name of the error's class.
        message: What to tell; empty when there is nobody left to tell.
        exit_code: Exit status of the process.
        label: The words before the message.
    """

    kind: str
    message: str
    exit_code: int
    label: str = "error"


def failure_of(error: BaseException) -> Failure:
    """The failure behind an exception."""
    kind = type(error).__name__
    match error:
        case BrokenPipeError():
            return Failure(kind, "", EXIT_OUTPUT)
        case LlsaError():
            return Failure(kind, str(error), error.exit_code)
        case KeyboardInterrupt() | click.Abort():
            return Failure("Interrupted", "what is finished is kept", EXIT_INTERRUPTED, "interrupted")
        case click.ClickException():
            return Failure(kind, _usage_text(error), EXIT_USAGE)
        case OSError():
            return Failure(kind, _os_text(error), EXIT_OUTPUT)
    message = " ".join(str(error).split())
    hint = f"run with {DEBUG_VARIABLE}=1 for the traceback"
    return Failure(kind, f"{kind}: {message}; {hint}", EXIT_INTERNAL, "internal error")


def report(error: BaseException, *, as_json: bool) -> int:
    """Tells about an error, on stdout as JSON or on stderr as text, and returns the exit status."""
    failure = failure_of(error)
    if os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0"):
        traceback.print_exception(error)
    try:
        if failure.message and as_json:
            click.echo(json.dumps({"error": {"type": failure.kind, "message": failure.message}}))
        elif failure.message:
            click.echo(f"{click.style(f'{failure.label}:', fg='red', bold=True)} {failure.message}", err=True)
    except OSError:
        return EXIT_OUTPUT  # neither the result nor the reason can be written
    return failure.exit_code


@contextmanager
def noted_interrupts() -> Iterator[threading.Event]:
    """Notes Ctrl-C: compilers die of it too, and their failure may come up first."""
    seen = threading.Event()

    def note(signal_number: int, frame: FrameType | None) -> None:
        seen.set()
        signal.default_int_handler(signal_number, frame)

    is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not is_ours or threading.current_thread() is not threading.main_thread():
        yield seen  # somebody else handles it, or it is ignored
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def close_stdout() -> None:
    """Lets the interpreter end in peace after stdout went away: it flushes once more."""
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, sys.__stdout__.fileno() if sys.__stdout__ is not None else 1)
    except (OSError, ValueError):
        return
    finally:
        os.close(null)


def _usage_text(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    message = error.format_message()
    return message if context is None else f"{message}\n  next:    {context.command_path} --help"


def _os_text(error: OSError) -> str:
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    what = error.strerror or str(error) or type(error).__name__
    hint = "choose another place or make room there" if names else None
    return explain(what, where=" -> ".join(names) or None, hint=hint)
