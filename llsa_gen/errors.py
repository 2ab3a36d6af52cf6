# SPDX-License-Identifier: Apache-2.0
"""The errors of llsa-gen: whose fault it is, what exactly was wrong, and what to do next."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

EXIT_OS_ERROR = 6
"""Exit status of the command line when the operating system refused something (``OSError``)."""

_LONGEST_VALUE = 240


class _NotGiven:
    """Type of the marker that tells "no value" from the value ``None``."""


NOT_GIVEN = _NotGiven()


def explain(
    what: str,
    *,
    where: str | None = None,
    value: object = NOT_GIVEN,
    allowed: object | None = None,
    hint: str | None = None,
) -> str:
    """Builds the text of an error: what / where / value / allowed / next step.

    Args:
        what: One sentence that says what is wrong.
        where: The field, argument, file or position that it is about.
        value: What was given; shown as ``repr`` and cut when very long.
        allowed: What would have been accepted: text, or a collection of choices.
        hint: What to do next; a command or a corrected value where there is one.
    """
    lines = [what]
    if where is not None:
        lines.append(f"  where:   {where}")
    if value is not NOT_GIVEN:
        lines.append(f"  value:   {_shorten(repr(value))}")
    if allowed is not None:
        lines.append(f"  allowed: {_choices(allowed)}")
    if hint is not None:
        lines.append(f"  next:    {hint}")
    return "\n".join(lines)


def did_you_mean(value: object, names: Iterable[str]) -> str | None:
    """A hint that names the closest of ``names``, or None when none is close."""
    from difflib import get_close_matches

    close = get_close_matches(str(value)[:80], list(names), n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else None


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}… ({len(text)} characters)"


def _choices(allowed: object) -> str:
    if isinstance(allowed, str) or not isinstance(allowed, Iterable):
        return str(allowed)
    return ", ".join(str(choice) for choice in allowed)


class LlsaError(Exception):
    """Base of every error raised on purpose by llsa-gen.

    Attributes:
        exit_code: Exit status of the command line when this error ends it.
    """

    exit_code: ClassVar[int] = 70


class SpecError(LlsaError, ValueError):
    """A specification, its file or its name is wrong: the user changes the specification."""

    exit_code: ClassVar[int] = 2


class InputError(LlsaError, ValueError):
    """A tensor or an argument of a call has a wrong shape, device, layout or value."""

    exit_code: ClassVar[int] = 2


class InputTypeError(InputError, TypeError):
    """A tensor or an argument of a call has a wrong type or dtype."""


class UnsupportedError(LlsaError, NotImplementedError):
    """A meaningful request that llsa-gen does not serve (yet)."""

    exit_code: ClassVar[int] = 2


class InfeasibleError(LlsaError):
    """No schedule fits the target.

    Attributes:
        limit: Name of the binding limit, for example ``"shared memory per block"``.
        value: The smallest need found.
        bound: What the target offers.
    """

    exit_code: ClassVar[int] = 3

    def __init__(self, message: str, *, limit: str = "", value: object = None, bound: object = None) -> None:
        super().__init__(message)
        self.limit = limit
        self.value = value
        self.bound = bound


class TemplateError(LlsaError):
    """A template could not be rendered: a fault of llsa-gen or of an edited template."""

    exit_code: ClassVar[int] = 4


class CompileError(LlsaError):
    """A compiler refused generated code.

    Attributes:
        path: The generated file.
        tool: The compiler.
        compiler_output: What the compiler said, untouched.
        hint: What to do next.
    """

    exit_code: ClassVar[int] = 4

    def __init__(
        self, message: str, *, path: object = None, tool: str = "", compiler_output: str = "", hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.path = path
        self.tool = tool
        self.compiler_output = compiler_output
        self.hint = hint

    def __str__(self) -> str:
        where = None if self.path is None else f"file {self.path}"
        value = self.tool or NOT_GIVEN
        allowed = "a compiler that runs and takes the file: see `llsa-gen doctor`" if self.tool else None
        said = explain(super().__str__(), where=where, value=value, allowed=allowed, hint=self.hint)
        return f"{said}\n{self.compiler_output}" if self.compiler_output else said


class ToolMissingError(LlsaError):
    """A compiler or library that the request needs is not installed."""

    exit_code: ClassVar[int] = 4


class StaleError(LlsaError):
    """A generated file differs from what would be generated now, or its manifest is broken."""

    exit_code: ClassVar[int] = 5


class OutputError(LlsaError):
    """A file or folder could not be written; what was there before is untouched."""

    exit_code: ClassVar[int] = EXIT_OS_ERROR


class NotBuiltError(LlsaError):
    """The kernels of a specification have not been generated here.

    Attributes:
        command: The command line that generates them.
    """

    exit_code: ClassVar[int] = 2

    def __init__(self, message: str, *, command: str = "") -> None:
        super().__init__(message)
        self.command = command


class InternalError(LlsaError):
    """A fault of llsa-gen itself; please report it with the message."""

    exit_code: ClassVar[int] = 70
