# SPDX-License-Identifier: Apache-2.0
"""The whitelist of expressions: words first, then every node of the syntax tree, then the size of every value."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from llsa_gen.errors import did_you_mean
from llsa_gen.spec.arithmetic import BINARY, FUNCTIONS, MAX_BITS, MAX_EXPONENT, Fault, apply, height, operands

MAX_CHARACTERS = 200
MAX_NODES = 120
MAX_DEPTH = 64
MAX_PARENTHESES = 32
MAX_CONSTANT = 2**63
MIN_CONSTANT = Fraction(1, 10**30)

_SYMBOL_BITS = {"b": 8, "l": 3, "L": 3, "c": 43, "D": 9}
"""Bits of the largest value of each symbol; ``c`` reaches 128**6."""

_TOKEN = re.compile(
    r"(?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<operator>\*\*|//|[-+*/(),])|(?P<space>[ \t]+)"
)


@dataclass
class _State:
    """What one walk over a tree has gathered."""

    text: str
    numbers: dict[ast.expr, Fraction] = field(default_factory=dict)
    symbols: set[str] = field(default_factory=set)
    nodes: int = 0


@dataclass(frozen=True)
class _Facts:
    """What is known about one part without knowing the symbols.

    Attributes:
        bits: Bound on the height of its value over all allowed symbol values.
        integral: Whether it is an integer for all (integer) symbol values, as far as one can see.
        rooted: Whether it holds a power with a possibly fractional exponent, so that its value may be rounded.
        value: Its value when it holds no symbols.
    """

    bits: int
    integral: bool
    rooted: bool
    value: Fraction | None


@dataclass(frozen=True)
class Checked:
    """A tree that passed every rule, with the exact value of its constants and the symbols it uses."""

    tree: ast.expr
    numbers: dict[ast.expr, Fraction]
    symbols: frozenset[str]


def check(text: str, allowed: Sequence[str]) -> Checked:
    """Parses an expression and applies every rule to it.

    Raises:
        Fault: The text breaks a rule.
    """
    _check_words(text, allowed)
    try:
        tree = ast.parse(text, mode="eval").body
    except SyntaxError as error:
        column = min(max((error.offset or 1) - 1, 0), len(text))
        raise Fault(f"the expression cannot be read ({error.msg})", span=(column, len(text))) from None
    except (ValueError, MemoryError, RecursionError):
        raise Fault("the expression cannot be read") from None
    state = _State(text)
    _check_node(tree, state, 1, in_exponent=False)
    return Checked(tree, state.numbers, frozenset(state.symbols))


def _check_words(text: str, allowed: Sequence[str]) -> None:
    """Admits only known words and operators, so that nothing else ever reaches a parser."""
    if len(text) > MAX_CHARACTERS:
        raise Fault(f"the expression has {len(text)} characters, at most {MAX_CHARACTERS} are allowed")
    if not text:
        raise Fault("the expression is empty")
    known = {*allowed, *FUNCTIONS}
    position = opened = 0
    while position < len(text):
        token = _TOKEN.match(text, position)
        if token is None:
            raise Fault(f"{text[position]!r} is not allowed", span=(position, position + 1))
        if token["name"] and token["name"] not in known:
            raise Fault(f"unknown name {token['name']!r}", span=token.span(), hint=did_you_mean(token["name"], known))
        if token["number"] and re.match("[A-Za-z_.]", text[token.end() :]):
            raise Fault("a number runs into a name", span=(token.start(), token.end() + 1), hint="write * between them")
        opened += {"(": 1, ")": -1}.get(token[0], 0)
        if opened > MAX_PARENTHESES:
            raise Fault(f"parentheses are nested deeper than {MAX_PARENTHESES}", span=token.span())
        position = token.end()


def _check_node(node: ast.expr, state: _State, depth: int, in_exponent: bool) -> _Facts:
    state.nodes += 1
    if state.nodes > MAX_NODES or depth > MAX_DEPTH:
        raise Fault(f"the expression has more than {MAX_NODES} parts or nests deeper than {MAX_DEPTH}", node)
    if isinstance(node, ast.Constant):
        return _check_constant(node, state)
    if isinstance(node, ast.Name):
        return _check_name(node, state)
    _check_shape(node)
    parts = operands(node)
    is_power = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow)
    facts = [
        _check_node(part, state, depth + 1, in_exponent or (is_power and index == 1))
        for index, part in enumerate(parts)
    ]
    if is_power and in_exponent and facts[1].value is None:
        raise Fault("inside an exponent a power needs a constant exponent", node)
    return _combine(node, facts)


def _check_constant(node: ast.Constant, state: _State) -> _Facts:
    literal = state.text[node.col_offset : node.end_col_offset]
    if isinstance(node.value, bool) or not isinstance(node.value, (int, float)):
        raise Fault("only numbers are allowed as constants", node)
    if node.value > MAX_CONSTANT:
        raise Fault(f"a constant is beyond {MAX_CONSTANT} (2**63) or not finite", node)
    mantissa = re.split("[eE]", literal)[0]
    is_zero = not mantissa.strip("0.")
    if not is_zero and node.value < float(MIN_CONSTANT):
        raise Fault("a constant is smaller than 1e-30", node)
    value = Fraction(0) if is_zero else Fraction(literal)
    state.numbers[node] = value
    return _Facts(height(value), integral=value.denominator == 1, rooted=False, value=value)


def _check_name(node: ast.Name, state: _State) -> _Facts:
    if node.id in FUNCTIONS:
        raise Fault(f"{node.id} is a function", node, hint=f"write {node.id}(...)")
    state.symbols.add(node.id)
    return _Facts(_SYMBOL_BITS.get(node.id, 64), integral=True, rooted=False, value=None)


def _check_shape(node: ast.expr) -> None:
    """Admits signs, the binary operators and plain calls of the known functions; nothing else."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        return
    if isinstance(node, ast.BinOp) and type(node.op) in BINARY:
        return
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS):
        raise Fault("this is not arithmetic", node)
    if node.keywords or any(isinstance(argument, ast.Starred) for argument in node.args):
        raise Fault("a call takes plain arguments only", node)
    rounds = node.func.id in ("floor", "ceil")
    if rounds and len(node.args) != 1:
        raise Fault(f"{node.func.id} takes one argument", node)
    if not rounds and len(node.args) < 2:
        raise Fault(f"{node.func.id} takes two or more arguments", node)


def _combine(node: ast.expr, parts: list[_Facts]) -> _Facts:
    """The facts of an operator or call from those of its parts."""
    values = [part.value for part in parts if part.value is not None]
    value = apply(node, values) if len(values) == len(parts) else None
    rooted = any(part.rooted for part in parts)
    integral = all(part.integral for part in parts)
    bits = sum(part.bits for part in parts) + 1
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Div, ast.FloorDiv)) and parts[1].value == 0:
        raise Fault("division by zero", node)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        bits = parts[0].bits * _largest_exponent(node, parts[1])
        rooted = rooted or not parts[1].integral
        integral = integral and parts[1].value is not None and parts[1].value >= 0
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        integral = False
    elif _rounds(node):
        if rooted:
            raise Fault("a fractional power cannot be rounded exactly", node, hint="leave out floor, ceil and // here")
        integral = True
    if bits > MAX_BITS:
        raise Fault(f"the value could need more than {MAX_BITS} bits (overflow)", node)
    return _Facts(bits, integral, rooted, value)


def _rounds(node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.FloorDiv)
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("floor", "ceil")


def _largest_exponent(node: ast.BinOp, exponent: _Facts) -> int:
    """A bound on the size of an exponent; larger ones are refused, here or when they turn up."""
    if exponent.value is None:
        return min(MAX_EXPONENT, 2**exponent.bits) if exponent.bits < 64 else MAX_EXPONENT
    if abs(exponent.value) > MAX_EXPONENT:
        raise Fault(f"an exponent is beyond {MAX_EXPONENT}", node)
    return int(abs(exponent.value)) + 1
