# SPDX-License-Identifier: Apache-2.0
"""Exact arithmetic of expressions: rationals in, rationals out, with every power bounded."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

MAX_EXPONENT = 64
MAX_BITS = 4096
"""Bound on the numerator and denominator of every value."""

_MAX_ROOT = 64


class Fault(Exception):
    """Something wrong in an expression, tied to a part of its text once that is known.

    Attributes:
        reason: What is wrong.
        node: The part that is wrong, or None while unknown.
        span: First and last column (0-based, end excluded) where there is no node.
        hint: What to write instead, or None.
    """

    def __init__(
        self,
        reason: str,
        node: ast.expr | None = None,
        span: tuple[int, int] | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.node = node
        self.span = span
        self.hint = hint


def height(value: Fraction) -> int:
    """Bits of the larger of numerator and denominator."""
    return max(value.numerator.bit_length(), value.denominator.bit_length())


def power(base: Fraction, exponent: Fraction) -> Fraction:
    """``base**exponent``; exact where the result is rational and the exponent small, else rounded to a float."""
    if abs(exponent) > MAX_EXPONENT:
        raise Fault(f"an exponent of {_brief(exponent)} is beyond {MAX_EXPONENT}")
    if base == 0 and exponent < 0:
        raise Fault("division by zero (zero to a negative power)")
    if exponent.denominator == 1:
        if height(base) * abs(exponent) > MAX_BITS:
            raise Fault(f"the power needs more than {MAX_BITS} bits (overflow)")
        return base**exponent.numerator
    if base < 0:
        raise Fault("a negative number to a fractional power is complex")
    exact = _rational_root(base, exponent.denominator)
    if exact is not None:
        return power(exact, Fraction(exponent.numerator))
    try:
        return Fraction(float(base) ** float(exponent))
    except (OverflowError, ZeroDivisionError):
        raise Fault("the power is out of the range of a float (overflow)") from None


def divide(left: Fraction, right: Fraction) -> Fraction:
    """``left / right``."""
    if right == 0:
        raise Fault("division by zero")
    return left / right


def divide_down(left: Fraction, right: Fraction) -> Fraction:
    """``left // right``: rounded towards minus infinity."""
    return Fraction(math.floor(divide(left, right)))


BINARY: Mapping[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: Fraction.__add__,
    ast.Sub: Fraction.__sub__,
    ast.Mult: Fraction.__mul__,
    ast.Div: divide,
    ast.FloorDiv: divide_down,
    ast.Pow: power,
}

FUNCTIONS: Mapping[str, Callable[[Sequence[Fraction]], Fraction]] = {
    "min": min,
    "max": max,
    "floor": lambda values: Fraction(math.floor(values[0])),
    "ceil": lambda values: Fraction(math.ceil(values[0])),
}


def evaluate(node: ast.expr, values: Mapping[str, Fraction], numbers: Mapping[ast.expr, Fraction]) -> Fraction:
    """The exact value of a checked expression tree.

    Args:
        node: A tree that ``grammar.check`` has passed.
        values: The value of every symbol.
        numbers: The exact value of every constant node (``grammar.Checked.numbers``).

    Raises:
        Fault: The value does not exist or is out of bounds.
    """
    if isinstance(node, ast.Constant):
        return numbers[node]
    if isinstance(node, ast.Name):
        return values[node.id]
    children = [evaluate(child, values, numbers) for child in operands(node)]
    return apply(node, children)


def operands(node: ast.expr) -> list[ast.expr]:
    """The parts that an operator or a call works on."""
    if isinstance(node, ast.UnaryOp):
        return [node.operand]
    if isinstance(node, ast.BinOp):
        return [node.left, node.right]
    assert isinstance(node, ast.Call)
    return node.args


def apply(node: ast.expr, children: list[Fraction]) -> Fraction:
    """One operator or call on the values of its parts."""
    try:
        result = _apply(node, children)
        if height(result) > 2 * MAX_BITS:
            raise Fault(f"the value needs more than {2 * MAX_BITS} bits (overflow)")
    except Fault as fault:
        fault.node = fault.node or node
        raise
    return result


def _apply(node: ast.expr, children: list[Fraction]) -> Fraction:
    if isinstance(node, ast.UnaryOp):
        return -children[0] if isinstance(node.op, ast.USub) else children[0]
    if isinstance(node, ast.BinOp):
        return BINARY[type(node.op)](children[0], children[1])
    assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    return FUNCTIONS[node.func.id](children)


def _rational_root(value: Fraction, degree: int) -> Fraction | None:
    """The exact ``degree``-th root of a non-negative rational, or None where there is none."""
    if degree > _MAX_ROOT:
        return None
    top, bottom = _whole_root(value.numerator, degree), _whole_root(value.denominator, degree)
    return None if top is None or bottom is None else Fraction(top, bottom)


def _whole_root(value: int, degree: int) -> int | None:
    """The exact root of a non-negative int by bisection on its bits, or None."""
    root = 0
    for bit in range(value.bit_length() // degree, -1, -1):
        if (root | 1 << bit) ** degree <= value:
            root |= 1 << bit
    return root if root**degree == value else None


def _brief(value: Fraction) -> str:
    return str(value) if height(value) <= 64 else f"{'-' if value < 0 else ''}2**{height(value) - 1} or more"
