# SPDX-License-Identifier: Apache-2.0
"""Expressions in specs: ``max(4, 16 // 2**l)``, ``b**l``. Checked before anything evaluates them."""

from __future__ import annotations

import operator
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Any

from llsa_gen.errors import SpecError, explain
from llsa_gen.spec import grammar
from llsa_gen.spec.arithmetic import FUNCTIONS, Fault, evaluate

TOPK_SYMBOLS = ("b", "l", "L", "D")
"""block, level, levels, head_dim."""

WEIGHT_SYMBOLS = ("b", "l", "L", "c", "D")
"""As in topk, and ``c``: the tokens that the node really covers."""

_FIXED_POINT_ROUNDS = 4


@dataclass(frozen=True)
class Expression:
    """A checked expression; equal when the text is.

    Attributes:
        text: What was written, without the blanks around it.
        symbols: The symbols that it uses, sorted.
        allowed: The symbols that it could use.
        place: The spec field that it belongs to, for messages.
    """

    text: str
    symbols: tuple[str, ...]
    allowed: tuple[str, ...]
    place: str
    _checked: grammar.Checked = field(repr=False, compare=False)

    @cached_property
    def canonical(self) -> str:
        """A text that equal expressions share as far as sympy simplifies on its own; parses to itself.

        Raises:
            SpecError: The canonical text breaks a bound, or the expression has no real value.
        """
        if self.text in self.symbols:
            return self.text
        text = self.text
        for _ in range(_FIXED_POINT_ROUNDS):
            previous, text = text, self._printed(text)
            if text == previous:
                return text
        raise _error(Fault("the expression has no stable canonical form", hint="write it more simply"), self)

    def evaluate(self, **values: int) -> int | float:
        """The value for given symbols: computed exactly, an int where it is whole, else the nearest float.

        Raises:
            SpecError: A symbol has no value, or the result does not exist, is complex or out of range.
        """
        missing = [name for name in self.symbols if name not in values]
        if missing:
            raise _error(Fault(f"no value was given for {', '.join(missing)}"), self)
        exact = {name: Fraction(operator.index(values[name])) for name in self.symbols}
        try:
            return _as_number(evaluate(self._checked.tree, exact, self._checked.numbers))
        except Fault as fault:
            at = ", ".join(f"{name}={values[name]}" for name in self.symbols)
            raise _error(fault, self, at) from None

    def to_sympy(self) -> Any:
        """The expression for symbolic work; its symbols are ``sympy.Symbol(name, integer=True, positive=True)``.

        Raises:
            SpecError: The expression has no real value whatever the symbols are.
        """
        from llsa_gen.spec import symbolic

        try:
            return symbolic.to_sympy(self._checked.tree, self._checked.numbers)
        except Fault as fault:
            raise _error(fault, self) from None

    def _printed(self, text: str) -> str:
        """The text of what sympy makes of ``text``."""
        from llsa_gen.spec import symbolic

        try:
            checked = grammar.check(text, self.allowed)
            return symbolic.print_text(symbolic.to_sympy(checked.tree, checked.numbers))
        except Fault as fault:
            if text != self.text:
                fault = Fault(f"its canonical form {text!r} is refused: {fault.reason}", hint="write it more simply")
            raise _error(fault, self) from None


@lru_cache(maxsize=256)
def _parse(text: str, allowed: tuple[str, ...], place: str) -> Expression:
    try:
        checked = grammar.check(text, allowed)
    except Fault as fault:
        unchecked = Expression(text, (), allowed, place, None)  # type: ignore[arg-type]  # only names things in a message
        raise _error(fault, unchecked) from None
    return Expression(text, tuple(sorted(checked.symbols)), allowed, place, checked)


def parse(text: object, allowed: Sequence[str], field: str = "expression") -> Expression:
    """Checks a text and makes it an expression.

    Args:
        text: Numbers, ``allowed`` symbols, ``+ - * / // **``, parentheses, ``min``, ``max``, ``floor``, ``ceil``.
        allowed: Names of the symbols that the text may use.
        field: The spec field that it belongs to, for messages.

    Raises:
        SpecError: The text breaks a rule; the message shows the part and its column.
    """
    if not isinstance(text, str):
        hint = f'write it in quotes: {field} = "{text if isinstance(text, (int, float)) else allowed[0]}"'
        what = f"{field} must be the text of an expression"
        raise SpecError(explain(what, where=f"spec field {field}", value=text, allowed=_language(allowed), hint=hint))
    return _parse(text.strip(" \t"), tuple(allowed), field)


def _as_number(value: Fraction) -> int | float:
    if abs(value) > Fraction(sys.float_info.max):
        raise Fault("the value is out of the range of a float (overflow)")
    return value.numerator if value.denominator == 1 else float(value)


def _language(allowed: Sequence[str]) -> str:
    functions = ", ".join(FUNCTIONS)
    return f"numbers, + - * / // **, parentheses, {functions}, and the symbols {', '.join(allowed)}"


def _error(fault: Fault, expression: Expression, at: str = "") -> SpecError:
    """The SpecError of a fault, with the part of the text that it is about."""
    where = f"spec field {expression.place}"
    span = fault.span
    if fault.node is not None:
        span = (fault.node.col_offset, fault.node.end_col_offset or fault.node.col_offset)
    if span is not None:
        where += f", column {span[0] + 1}: {expression.text[span[0] : span[1]]!r}"
    if at:
        where += f" at {at}"
    allowed = _language(expression.allowed)
    hint = fault.hint or 'write a number, or an expression such as "max(4, 16 // 2**l)"'
    return SpecError(explain(fault.reason, where=where, value=expression.text, allowed=allowed, hint=hint))
