# SPDX-License-Identifier: Apache-2.0
"""Failures: what an exception means to somebody at a terminal, and the exit status of the process."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import click

from llsa_gen.environment import DEBUG_VARIABLE, is_on
from llsa_gen.errors import EXIT_OS_ERROR, NOT_GIVEN, LlsaError, explain

_OS_HINT = "choose another place or make room there"

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


def failure_of(error: BaseException, words: Sequence[str] = ()) -> Failure:
    """The failure behind an exception that a command line ended in."""
    kind = type(error).__name__
    match error:
        case BrokenPipeError():
            return Failure(kind, "", EXIT_OUTPUT)
        case LlsaError():
            return Failure(kind, str(error), error.exit_code)
        case KeyboardInterrupt() | click.Abort():
            return Failure("Interrupted", "what is finished is kept", EXIT_INTERRUPTED, "interrupted")
        case click.ClickException():
            return Failure(kind, _usage_text(error, words), EXIT_USAGE)
        case OSError():
            return Failure(kind, _os_text(error), EXIT_OUTPUT)
    message = " ".join(str(error).split())
    hint = f"run with {DEBUG_VARIABLE}=1 for the traceback"
    return Failure(kind, f"{kind}: {message}; {hint}", EXIT_INTERNAL, "internal error")


def report(error: BaseException, words: Sequence[str], *, as_json: bool) -> int:
    """Tells about an error, on stdout as JSON or on stderr as text, and returns the exit status."""
    failure = failure_of(error, words)
    if is_on(DEBUG_VARIABLE):
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


def _usage_text(error: click.ClickException, words: Sequence[str]) -> str:
    """What was wrong with the command line itself; click knows the parts and words them in one sentence."""
    message = error.format_message()
    context = error.ctx if isinstance(error, click.UsageError) else None
    program = "llsa-gen" if context is None else context.command_path
    hint = f"{program} --help"
    if isinstance(error, click.NoSuchOption):
        what, known = "there is no such option", [] if context is None else _options_of(context)
        meant = f"did you mean {' or '.join(error.possibilities)}? See {hint}" if error.possibilities else hint
        return explain(what, where=program, value=error.option_name, allowed=known, hint=meant)
    if isinstance(error, click.BadParameter) and error.param is not None:
        given = re.match(r"'?(.*?)'? is not ", error.message)
        value, allowed = given[1] if given else NOT_GIVEN, f"{error.param.type.name}: see {hint}"
        return explain(message, where=error.param.opts[0], value=value, allowed=allowed, hint=hint)
    form = [] if context is None else context.command.collect_usage_pieces(context)
    allowed = " ".join([program, *form])
    return explain(message, where=program, value=shlex.join(words), allowed=allowed, hint=hint)


def _options_of(context: click.Context) -> list[str]:
    """The names of the options that a verb takes."""
    options = context.command.get_params(context)
    return [name for option in options for name in option.opts if name.startswith("-")]


def _os_text(error: OSError) -> str:
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    what = error.strerror or str(error) or type(error).__name__
    if not names:
        return what  # a stream, or a message of its own
    value, allowed = errno.errorcode.get(error.errno or 0, what), "files and folders that the system lets one use"
    return explain(what, where=" -> ".join(names), value=value, allowed=allowed, hint=_OS_HINT)
