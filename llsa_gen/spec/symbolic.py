# SPDX-License-Identifier: Apache-2.0
"""Expressions as sympy sees them, and a printed form that depends on nothing but the expression.

Trees are built node by node from a checked syntax tree; sympy never parses text. ``Max`` and ``Min`` are flattened
and sorted here and left unevaluated, because sympy's own simplification of them can take exponential time.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from llsa_gen.spec.arithmetic import MAX_EXPONENT, Fault, operands

_ADD, _MULTIPLY, _POWER, _ATOM = 1, 2, 3, 4
_Printed = tuple[str, int]


def symbol(name: str) -> Any:
    """The sympy symbol of a spec symbol: a positive integer."""
    import sympy

    return sympy.Symbol(name, integer=True, positive=True)


def to_sympy(node: ast.expr, numbers: Mapping[ast.expr, Fraction]) -> Any:
    """The sympy expression of a checked tree.

    Raises:
        Fault: The expression has no real value whatever the symbols are.
    """
    import sympy

    if isinstance(node, ast.Constant):
        number = numbers[node]
        return sympy.Rational(number.numerator, number.denominator)
    if isinstance(node, ast.Name):
        return symbol(node.id)
    parts = [to_sympy(part, numbers) for part in operands(node)]
    try:
        result = _combine(node, parts)
        if result.has(sympy.zoo, sympy.nan, sympy.oo, sympy.I):
            raise Fault("the expression has no real value")
    except Fault as fault:
        fault.node = fault.node or node
        raise
    except Exception as error:  # sympy fails on odd powers with its own assertions, TypeErrors and recursion
        reason = f"sympy cannot simplify this ({type(error).__name__})"
        raise Fault(reason, node, hint="write it more simply") from error
    return result


def _combine(node: ast.expr, parts: list[Any]) -> Any:
    """One operator or call on sympy operands."""
    import sympy

    if isinstance(node, ast.UnaryOp):
        return -parts[0] if isinstance(node.op, ast.USub) else parts[0]
    if isinstance(node, ast.BinOp):
        return _BINARY[type(node.op)](*parts)
    assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    if node.func.id in ("min", "max"):
        return _extreme(sympy.Min if node.func.id == "min" else sympy.Max, parts)
    return sympy.floor(parts[0]) if node.func.id == "floor" else sympy.ceiling(parts[0])


def _divide(left: Any, right: Any) -> Any:
    if right == 0:
        raise Fault("division by zero")
    return left / right


def _divide_down(left: Any, right: Any) -> Any:
    import sympy

    return sympy.floor(_divide(left, right))


def _power(base: Any, exponent: Any) -> Any:
    if exponent.is_Rational and abs(exponent) > MAX_EXPONENT:
        raise Fault(f"an exponent is beyond {MAX_EXPONENT}")
    if base == 0 and exponent.is_negative:
        raise Fault("division by zero (zero to a negative power)")
    return base**exponent


_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: lambda left, right: left + right,
    ast.Sub: lambda left, right: left - right,
    ast.Mult: lambda left, right: left * right,
    ast.Div: _divide,
    ast.FloorDiv: _divide_down,
    ast.Pow: _power,
}


def _extreme(function: Any, parts: list[Any]) -> Any:
    """``Max`` or ``Min`` of distinct, flattened operands with at most one number among them."""
    import sympy

    flat: list[Any] = []
    for part in parts:
        flat.extend(part.args if isinstance(part, function) else [part])
    numbers = [part for part in flat if part.is_Rational]
    others = {print_text(part): part for part in flat if not part.is_Rational}
    if numbers:
        constant = max(numbers) if function is sympy.Max else min(numbers)
        others[print_text(constant)] = constant
    distinct = [others[text] for text in sorted(others)]
    return distinct[0] if len(distinct) == 1 else function(*distinct, evaluate=False)


def print_text(expression: Any) -> str:
    """The text of a sympy expression in the language of specs; operands are sorted by their own text.

    Raises:
        Fault: The expression holds something that the language cannot say.
    """
    return _print(expression)[0]


def _print(expression: Any) -> _Printed:
    import sympy

    rows: list[tuple[Any, Callable[[Any], _Printed]]] = [
        (sympy.Rational, _print_rational),
        (sympy.Symbol, lambda found: (found.name, _ATOM)),
        (sympy.Add, _print_sum),
        (sympy.Mul, _print_product),
        (sympy.Pow, _print_power),
        (sympy.Max, lambda found: _print_call("max", found.args)),
        (sympy.Min, lambda found: _print_call("min", found.args)),
        (sympy.floor, lambda found: _print_call("floor", found.args)),
        (sympy.ceiling, lambda found: _print_call("ceil", found.args)),
        (sympy.Abs, lambda found: _print_call("max", (found.args[0], -found.args[0]))),
    ]
    for kind, printer in rows:
        if isinstance(expression, kind):
            return printer(expression)
    raise Fault("the expression has no real value")


def _print_rational(number: Any) -> _Printed:
    text = str(number.p) if number.q == 1 else f"{number.p}/{number.q}"
    if number.p < 0:
        return text, _ADD
    return text, _ATOM if number.q == 1 else _MULTIPLY


def _print_sum(expression: Any) -> _Printed:
    terms = sorted((_print(term)[0] for term in expression.args), key=lambda text: (text.lstrip("-"), text))
    return terms[0] + "".join(f" - {t[1:]}" if t.startswith("-") else f" + {t}" for t in terms[1:]), _ADD


def _print_product(expression: Any) -> _Printed:
    coefficient, factors = expression.as_coeff_mul()
    above, below = [], []
    for factor in factors:
        if factor.is_Pow and factor.exp.is_Rational and factor.exp < 0:
            below.append(_enclosed(1 / factor, _POWER))
        else:
            above.append(_enclosed(factor, _POWER))
    if abs(coefficient.p) != 1:
        above.append(str(abs(coefficient.p)))
    if coefficient.q != 1:
        below.append(str(coefficient.q))
    sign = "-" if coefficient < 0 else ""
    text = "*".join(sorted(above)) or "1"
    if below:
        divisor = "*".join(sorted(below))
        text += f"/({divisor})" if len(below) > 1 else f"/{divisor}"
    return sign + text, _ADD if sign else _MULTIPLY


def _print_power(expression: Any) -> _Printed:
    base, exponent = expression.base, expression.exp
    if exponent.is_Rational and exponent < 0:
        return f"1/{_enclosed(1 / expression, _POWER)}", _MULTIPLY
    return f"{_enclosed(base, _ATOM)}**{_enclosed(exponent, _ATOM)}", _POWER


def _print_call(name: str, arguments: Any) -> _Printed:
    return f"{name}({', '.join(sorted(print_text(argument) for argument in arguments))})", _ATOM


def _enclosed(expression: Any, weakest: int) -> str:
    """The text, in parentheses when it binds weaker than its place needs."""
    text, binding = _print(expression)
    return text if binding >= weakest else f"({text})"
