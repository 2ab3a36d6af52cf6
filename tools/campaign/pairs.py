# SPDX-License-Identifier: Apache-2.0
"""Few rows in which every two values of every two fields meet: a covering array of strength two."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

Row = dict[str, Any]
Pair = frozenset[tuple[str, Any]]

TRIES = 40
"""Rows tried for each one that is taken; more give slightly fewer rows."""


def all_pairs(fields: Mapping[str, Sequence[Any]]) -> set[Pair]:
    """Every two values of every two fields."""
    found = combinations([(name, value) for name, values in fields.items() for value in values], 2)
    return {frozenset(pair) for pair in found if pair[0][0] != pair[1][0]}


def pairs_of(row: Row) -> set[Pair]:
    """The pairs that meet in a row."""
    return {frozenset(pair) for pair in combinations(row.items(), 2)}


def covering(fields: Mapping[str, Sequence[Any]], seed: int = 0) -> tuple[Row, ...]:
    """Rows that cover all pairs, found greedily: each is the best of some that begin with a pair not covered yet.

    Args:
        fields: The values of every field; they are hashable and differ.
        seed: The same seed gives the same rows.
    """
    chance = random.Random(seed)  # noqa: S311  (no secret)
    open_pairs = all_pairs(fields)
    order = {pair: place for place, pair in enumerate(sorted(open_pairs, key=lambda pair: sorted(map(repr, pair))))}
    rows: list[Row] = []
    while open_pairs:
        first = min(open_pairs, key=order.__getitem__)
        tried = [_grown(fields, dict(first), open_pairs, chance) for _ in range(TRIES)]
        best = max(tried, key=lambda row: len(pairs_of(row) & open_pairs))
        rows.append({name: best[name] for name in fields})
        open_pairs -= pairs_of(best)
    return tuple(rows)


def _grown(fields: Mapping[str, Sequence[Any]], row: Row, open_pairs: set[Pair], chance: random.Random) -> Row:
    """A row with the fields that it lacks, in any order, each with a value that covers most."""
    row = dict(row)
    missing = [name for name in fields if name not in row]
    chance.shuffle(missing)
    for name in missing:
        scored = [
            (sum(frozenset({(name, value), known}) in open_pairs for known in row.items()), chance.random(), value)
            for value in fields[name]
        ]
        row[name] = max(scored, key=lambda score: score[:2])[2]
    return row
