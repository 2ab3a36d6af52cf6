# SPDX-License-Identifier: Apache-2.0
"""Output: the result of a verb on stdout, as text or as one JSON document, and progress on stderr."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

FILE_WIDTH = 160
"""Columns of text that goes to a file or a pipe."""

BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")

Step = Callable[..., None]
"""``step(text, number=1, total=1)`` tells what happens now, and that it is step ``number`` of ``total``."""


@dataclass(frozen=True)
class Result:
    """What a verb found or did.

    Attributes:
        data: JSON-able data: all of it.
        show: Prints it for people.
        brief: The lines of ``--quiet``: names and paths that scripts go on with.
        exit_code: Exit status of the process.
    """

    data: Mapping[str, Any]
    show: Callable[[Console], None]
    brief: tuple[str, ...] = ()
    exit_code: int = 0


def reported(function: Callable[..., Result]) -> Callable[..., None]:
    """Gives a verb ``--json`` and ``--quiet`` and prints the result that it returns.

    Whatever else prints on stdout meanwhile, such as a compiler, prints on stderr.
    """

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document, errors included.")
    @click.option("-q", "--quiet", is_flag=True, help="Print only names and paths, and errors.")
    @functools.wraps(function)
    def verb(*, as_json: bool, quiet: bool, **given: Any) -> None:
        with redirect_stdout(sys.stderr):
            result = function(**given)
        write(result, as_json=as_json, quiet=quiet)
        if result.exit_code:
            raise click.exceptions.Exit(result.exit_code)

    return verb


def write(result: Result, *, as_json: bool, quiet: bool) -> None:
    """Prints a result on stdout."""
    if as_json:
        click.echo(json.dumps(result.data, indent=2, ensure_ascii=False, allow_nan=False))
    elif quiet:
        click.echo("".join(f"{line}\n" for line in result.brief), nl=False)
    else:
        result.show(console(sys.stdout))
    sys.stdout.flush()


@contextmanager
def progress() -> Iterator[Step]:
    """Shows steps of long work on stderr: a moving bar on a terminal, lines of text in a log."""
    options = click.get_current_context().params
    if options["quiet"] or (options["as_json"] and not sys.stderr.isatty()):
        yield _say_nothing
    elif sys.stderr.isatty():
        yield from _bar()
    else:
        yield _Log(sys.stderr)


def console(stream: TextIO) -> Console:
    """A console that prints text as it is given."""
    from rich.console import Console

    width = None if stream.isatty() else FILE_WIDTH
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False, soft_wrap=False)


def table(*columns: str, right: tuple[str, ...] = (), title: str | None = None) -> Table:
    """An empty table; columns named in ``right`` hold numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(
        box=SIMPLE_HEAD, show_edge=False, title=title, title_justify="left", title_style="bold", pad_edge=False
    )
    for column in columns:
        is_number = column in right
        made.add_column(column, justify="right" if is_number else "left", no_wrap=is_number, overflow="fold")
    return made


def format_bytes(count: float) -> str:
    """A number of bytes for people, for example ``1.5 MiB``."""
    size = float(count)
    for unit in BYTE_UNITS:
        if size < 1024 or unit == BYTE_UNITS[-1]:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("the last unit takes everything")


def _say_nothing(text: str, number: int = 1, total: int = 1) -> None:
    """Progress that nobody wants to see."""


class _Log:
    """Progress as lines of text; a text that repeats is printed once."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last = ""

    def __call__(self, text: str, number: int = 1, total: int = 1) -> None:
        line = _numbered(text, number, total)
        if line != self._last:
            self._last = line
            click.echo(line, file=self._stream)


def _numbered(text: str, number: int, total: int) -> str:
    return text if total == 1 else f"[{number}/{total}] {text}"


def _bar() -> Iterator[Step]:
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console(sys.stderr), transient=True) as shown:
        task = shown.add_task("starting", total=None)

        def step(text: str, number: int = 1, total: int = 1) -> None:
            known = total if total > 1 else None
            shown.update(task, description=_numbered(text, number, total), completed=number - 1, total=known)

        yield step
