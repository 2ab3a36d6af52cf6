# SPDX-License-Identifier: Apache-2.0
"""What a benchmark says in the end: speed-ups, growth beside that of the model, and crossover lengths."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from llsa_gen.bench.rows import FORWARD, TRAINING, Row
from llsa_gen.bench.statistics import Curve, crossover, exponents
from llsa_gen.bench.transpose import FORMS, GRADIENT, INVERTED, MASKED, TRANSPOSE, TransposeRow

PARTS = (FORWARD, TRAINING)


def curve(rows: Iterable[Row], part: str, name: str, of: Callable[[Row], float] = lambda row: row.seconds) -> Curve:
    """A number of some rows by length."""
    return [(row.tokens, of(row)) for row in rows if (row.part, row.name) == (part, name)]


def attention_summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Per part: speed-ups over SDPA, growth of both and of the model's flops, and the crossover."""
    return {part: _part(rows, part) for part in PARTS if curve(rows, part, "llsa")}


def transpose_summary(rows: Sequence[TransposeRow]) -> dict[str, Any]:
    """Per part: how much faster inverted lists are, and the growth of both forms."""
    said = {}
    for part in (TRANSPOSE, GRADIENT):
        curves = {
            form: [(row.tokens, row.seconds) for row in rows if (row.part, row.form) == (part, form)] for form in FORMS
        }
        both = ratios(curves[INVERTED], curves[MASKED])
        growth = {form: _exponents(found) for form, found in curves.items()}
        said[part] = {"speed_up": both, "growth": growth}
    return said


def ratios(mine: Curve, other: Curve) -> list[dict[str, float]]:
    """How much longer the other takes, where both were measured."""
    known = dict(other)
    return [{"tokens": at, "times": known[at] / seconds} for at, seconds in mine if at in known]


def _part(rows: Sequence[Row], part: str) -> dict[str, Any]:
    mine, dense = curve(rows, part, "llsa"), curve(rows, part, "sdpa")
    found = crossover(mine, dense)
    return {
        "speed_up": ratios(mine, dense),
        "growth": {
            "llsa": _exponents(mine),
            "sdpa": _exponents(dense),
            "model": _exponents(curve(rows, part, "llsa", lambda row: row.flops)),
        },
        "crossover": {"tokens": found.tokens, "note": found.note},
        "extrapolation": ratios(curve(rows, part, "sdpa"), curve(rows, part, "sdpa_slice")),
    }


def _exponents(found: Curve) -> list[dict[str, float]]:
    return [{"from": short, "to": long, "exponent": value} for short, long, value in exponents(found)]
