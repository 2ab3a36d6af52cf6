# SPDX-License-Identifier: Apache-2.0
"""Expressions: exact, bounded, closed under their canonical form, and nothing but arithmetic."""

from __future__ import annotations

import copy
import math
import pickle
import re
import time
from fractions import Fraction

import pytest
import sympy
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from llsa_gen.errors import LlsaError, SpecError
from llsa_gen.spec import TOPK_SYMBOLS, WEIGHT_SYMBOLS, Expression, parse
from llsa_gen.spec.grammar import MAX_CHARACTERS
from tests.strategies import budget

VALUES = st.fixed_dictionaries(
    {
        "b": st.sampled_from([4, 16, 128]),
        "l": st.integers(1, 6),
        "L": st.integers(1, 6),
        "c": st.integers(1, 10**6),
        "D": st.sampled_from([16, 48, 256]),
    }
)
ATOMS = st.sampled_from(WEIGHT_SYMBOLS) | st.integers(0, 40).map(str) | st.sampled_from(["0.5", "1.25", "2e1", ".1"])


def _wider(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pairs = st.tuples(inner, st.sampled_from([" + ", "-", "*", " / ", "//"]), inner)
    return st.one_of(
        pairs.map(lambda parts: f"({''.join(parts)})"),
        inner.map(lambda part: f"-{part}"),
        st.tuples(inner, st.sampled_from(["2", "3", "l", "(L-l)", "(-1)"])).map(lambda p: f"({p[0]})**{p[1]}"),
        st.tuples(st.sampled_from(["min", "max"]), st.lists(inner, min_size=2, max_size=3)).map(
            lambda parts: f"{parts[0]}({', '.join(parts[1])})"
        ),
        st.tuples(st.sampled_from(["floor", "ceil"]), inner).map(lambda parts: f"{parts[0]}({parts[1]})"),
    )


TEXTS = st.recursive(ATOMS, _wider, max_leaves=6)


def accepted(text: str) -> Expression:
    """The expression of a text; the example is dropped where a bound refuses it."""
    try:
        return parse(text, WEIGHT_SYMBOLS)
    except SpecError:
        assume(False)
        raise


def value_or_none(expression: Expression, values: dict[str, int]) -> int | float | None:
    try:
        return expression.evaluate(**values)
    except SpecError:
        return None


# -- laws -----------------------------------------------------------------------------------------


@budget(300)
@given(TEXTS, VALUES)
@example("floor(-l/2) + ceil(-l/2)", {"b": 4, "l": 3, "L": 3, "c": 1, "D": 16})
@example("(-c)//(-7) + c//(-7)", {"b": 4, "l": 3, "L": 3, "c": 15, "D": 16})
@example("max(min(b, l), min(l, b), 2)", {"b": 4, "l": 3, "L": 3, "c": 1, "D": 16})
def test_own_evaluation_agrees_with_sympy(text: str, values: dict[str, int]) -> None:
    expression = accepted(text)
    value = value_or_none(expression, values)
    assume(value is not None)
    assert value is not None
    symbolic = expression.to_sympy()
    exact = symbolic.subs({symbol: values[symbol.name] for symbol in symbolic.free_symbols})
    assert exact.is_Rational
    assert float(Fraction(int(exact.p), int(exact.q))) == float(value)


@budget(300)
@given(TEXTS, VALUES)
@example("2**(l*l)", {"b": 4, "l": 3, "L": 3, "c": 1, "D": 16})
@example("max(c, max(4, b), 4, 9)", {"b": 4, "l": 3, "L": 3, "c": 1, "D": 16})
def test_canonical_text_is_a_fixed_point_of_equal_value(text: str, values: dict[str, int]) -> None:
    expression = accepted(text)
    try:
        canonical = parse(expression.canonical, WEIGHT_SYMBOLS)
    except SpecError:
        assume(False)
        raise
    assert canonical.canonical == canonical.text == expression.canonical
    value = value_or_none(expression, values)
    if value is not None:
        assert canonical.evaluate(**values) == value


@settings(deadline=None)
@given(TEXTS, VALUES)
def test_own_evaluation_agrees_with_python_on_fractions(text: str, values: dict[str, int]) -> None:
    value = value_or_none(accepted(text), values)
    assume(value is not None)
    assert value is not None
    names = {"floor": math.floor, "ceil": math.ceil, "min": min, "max": max, "F": Fraction}
    exact = re.sub(r"[0-9.]+(e1)?", lambda number: f"F('{number[0]}')", text)
    assert float(value) == float(eval(exact, names, {name: Fraction(number) for name, number in values.items()}))


@settings(deadline=None)
@given(st.text(alphabet="blLcD0129.+-*/() ,eminaxflorc%_'\"[]{}:=!<>@~^&|\\\n\té", max_size=60))
def test_any_text_is_an_expression_or_a_spec_error(text: str) -> None:
    try:
        expression = parse(text, WEIGHT_SYMBOLS)
        expression.evaluate(b=4, l=1, L=2, c=3, D=16)
        assert expression.canonical
    except SpecError as error:
        assert "allowed:" in str(error) and "where:" in str(error)


# -- what is refused, and that it is refused quickly ------------------------------------------------

HOSTILE = [
    "9**9**9",
    "9**9**9**9",
    "b**(64**l)",
    "b**(64**l)**2",
    "((((b**64)**64)**64)**64)",
    "((((2*b)**64)**64)**64)",
    "((9**(b*0+64))**(b*0+64))**(b*0+64)",
    "2**-9999999999",
    "1e400",
    "1e-400",
    "1e99999999999",
    "9" * 150,
    "-" * 5000 + "1",
    "-" * 190 + "1",
    "(" * 10000 + "1" + ")" * 10000,
    "(" * 90 + "1" + ")" * 90,
    "+".join("c" * 100),
    "c" * 201,
    "__import__('os').system('true')",
    "c.real",
    "().__class__",
    "[c]",
    "c if c else b",
    "c or b",
    "not c",
    "lambda: c",
    "c < b",
    "c % b",
    "c & 1",
    "~c",
    "max",
    "max(c)",
    "max()",
    "max(*c)",
    "max(c, key=b)",
    "max(c, b, default=1)",
    "floor(c, b)",
    "ceil()",
    "abs(c)",
    "c(1)",
    "max(c, b)(2)",
    "(c, b)",
    "c,",
    "1j",
    "0x10",
    "1_000",
    "007",
    "2c",
    "1.2.3",
    "True",
    "None",
    "'c'",
    "f'{c}'",
    "c\nb",
    "c#b",
    "c;b",
    "x",
    "C",
    "",
    "   ",
    "(",
    ")",
    "c +",
    "* c",
    "c c",
    "\u217c",
    "\uff43",
    "\u0661",
    "c\x00",
    "c/0",
    "c//0",
    "c/(2-2)",
    "0**-1",
    "(-8)**(1/3)",
    "floor(c**0.5)",
    "(c**0.5)//2",
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:24] or "empty")
def test_hostile_text_is_refused_quickly(text: str) -> None:
    start = time.perf_counter()
    with pytest.raises(SpecError) as caught:
        parse(text, WEIGHT_SYMBOLS, field="weight")
    assert time.perf_counter() - start < 0.5
    assert isinstance(caught.value, LlsaError)
    assert "spec field weight" in str(caught.value)
    assert "symbols b, l, L, c, D" in str(caught.value)


SLOW = [
    "max(b," * 28 + "c" + ")" * 28,
    "max(min(b,l),min(L,max(c,D)),min(b+l,max(c-D,L)),max(b*l,min(c,D)),min(l,max(D-b,c)))",
    "(b+l+L+c+D)**60",
    "(b+c)**30*(l+L)**30",
    "floor(floor(floor(floor(c/3)/7)/11)/13)+ceil(ceil(b/3)/l)",
    "((2*b)**64)**4",
    "2**(l*l*l*L)",
    "(1/3+b)**60",
    "c**(1/3)*b**(1/7)*D**0.5",
    "(b-b+9)**(l-l+60)",
    "max(c-b,b-c)**60",
    "ceil((c+1/3)/(b+1/7)) // (l+1/9)",
]


@pytest.mark.parametrize("text", SLOW, ids=lambda text: text[:24])
def test_large_expressions_stay_quick(text: str) -> None:
    start = time.perf_counter()
    try:
        expression = parse(text, WEIGHT_SYMBOLS)
        assert parse(expression.canonical, WEIGHT_SYMBOLS).canonical == expression.canonical
        expression.evaluate(b=128, l=1, L=6, c=128**6, D=256)
    except SpecError as error:
        assert "overflow" in str(error) or "exponent" in str(error) or "canonical" in str(error)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1/(l-1)", {"l": 1}),
        ("1//(l-1)", {"l": 1}),
        ("(l-1)**-1", {"l": 1}),
        ("(l-3)**0.5", {"l": 1}),
        ("2**c", {"c": 65}),
        ("2**(c*c)", {"c": 40}),
        ("c**20 * c**(b/16)", {"c": 10**6, "b": 2048}),
        ("c", {}),
    ],
)
def test_what_only_shows_with_values_is_a_spec_error(text: str, values: dict[str, int]) -> None:
    expression = parse(text, WEIGHT_SYMBOLS)
    with pytest.raises(SpecError):
        expression.evaluate(**values)


def test_a_value_beyond_floats_is_refused() -> None:
    with pytest.raises(SpecError, match="overflow"):
        parse("c**64", WEIGHT_SYMBOLS).evaluate(c=2**20)


# -- examples --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("c", "c"),
        (" c * 1", "c"),
        ("c/1 + 0", "c"),
        ("1.0", "1"),
        ("b**l", "b**l"),
        ("b**(l-1)*b**1", "b*b**(-1 + l)"),
        ("b**l*b**l", "b**(2*l)"),
        ("l + b", "b + l"),
        ("0.1*c", "c/10"),
        ("c - b", "-b + c"),
        ("-c", "-c"),
        ("1/b**l", "b**(-l)"),
        ("c/(b*l)", "c/(b*l)"),
        ("floor(c)", "c"),
        ("c//b", "floor(c/b)"),
        ("max(4, 16 // 2**l)", "max(4, floor(16*2**(-l)))"),
        ("max(l, b, 3, max(2, l))", "max(3, b, l)"),
        ("c**0.5", "c**(1/2)"),
        ("ceil(L/2)", "ceil(L/2)"),
        ("b**(l*l)//3", "floor(b**(l**2)/3)"),
    ],
)
def test_canonical_examples(text: str, canonical: str) -> None:
    assert parse(text, WEIGHT_SYMBOLS).canonical == canonical


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("16 // 2**3", 2),
        ("-7 // 2", -4),
        ("7 // -2", -4),
        ("-7 / 2", -3.5),
        ("ceil(-7 / 2)", -3),
        ("floor(-7 / 2)", -4),
        ("0.1 + 0.2 - 0.3", 0),
        ("2**-1", 0.5),
        ("-2**2", -4),
        ("8**(1/3)", 2),
        ("(1/4)**0.5", 0.5),
        ("2**0.5", math.sqrt(2)),
        ("0**0", 1),
        ("+3", 3),
        ("1e3", 1000),
    ],
)
def test_value_examples(text: str, value: float) -> None:
    found = parse(text, ()).evaluate()
    assert found == value
    assert type(found) is type(value)


def test_message_shows_part_column_and_what_is_allowed() -> None:
    with pytest.raises(SpecError) as caught:
        parse("b + blok", TOPK_SYMBOLS, field="topk")
    message = str(caught.value)
    assert "unknown name 'blok'" in message
    assert "column 5: 'blok'" in message
    assert "symbols b, l, L, D" in message
    with pytest.raises(SpecError, match="column 3: '1/0'"):
        parse("c+1/0 + 1", WEIGHT_SYMBOLS)


def test_topk_does_not_know_the_count() -> None:
    with pytest.raises(SpecError, match="unknown name 'c'"):
        parse("c", TOPK_SYMBOLS)


@pytest.mark.parametrize("value", [1, 1.5, None, ["c"], b"c", True])
def test_only_text_is_an_expression(value: object) -> None:
    with pytest.raises(SpecError, match="must be the text of an expression"):
        parse(value, WEIGHT_SYMBOLS)


def test_the_longest_text_is_accepted() -> None:
    text = "c+1." + "0" * (MAX_CHARACTERS - 4)
    assert len(text) == MAX_CHARACTERS
    assert parse(text, WEIGHT_SYMBOLS).evaluate(c=2) == 3


def test_symbols_are_positive_integers_in_sympy() -> None:
    expression = parse("b**l + c", WEIGHT_SYMBOLS)
    assert expression.symbols == ("b", "c", "l")
    assert expression.to_sympy().free_symbols == {
        sympy.Symbol(name, integer=True, positive=True) for name in expression.symbols
    }


def test_expressions_are_values() -> None:
    expression = parse("b**l", WEIGHT_SYMBOLS)
    for other in (copy.deepcopy(expression), pickle.loads(pickle.dumps(expression))):
        assert other == expression
        assert hash(other) == hash(expression)
        assert other.evaluate(b=4, l=2) == 16
