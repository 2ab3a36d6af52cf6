# SPDX-License-Identifier: Apache-2.0
"""What follows from times at several lengths: growth between them, where two curves meet, and what a model predicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

Curve = Sequence[tuple[int, float]]
"""Lengths, ascending, with seconds."""


@dataclass(frozen=True)
class Rates:
    """What the machine reached in the same rounds as what it is compared with.

    Attributes:
        matmul: Floating-point operations per second of a matrix product.
        copy: Bytes per second, read and written, of a copy.
    """

    matmul: float
    copy: float

    def seconds(self, flops: float, moved: float) -> float:
        """The least time of some work: all of its flops at one rate, or all of its bytes at the other."""
        return max(flops / self.matmul, moved / self.copy)


@dataclass(frozen=True)
class Crossover:
    """From which length on one curve is below another.

    Attributes:
        tokens: The length, between two measured ones interpolated; None when it was not reached.
        note: How it was found.
    """

    tokens: float | None
    note: str


def exponents(curve: Curve) -> list[tuple[int, int, float]]:
    """Between neighbouring lengths the e of ``seconds ~ length**e``."""
    found = []
    for (short, before), (long, after) in pairwise(curve):
        found.append((short, long, math.log(after / before) / math.log(long / short)))
    return found


def crossover(mine: Curve, other: Curve) -> Crossover:
    """The length from which on ``mine`` stays below ``other``, as far as it was measured.

    Between two lengths both times are taken for powers of the length.

    Args:
        mine: Seconds by length.
        other: The same lengths.
    """
    tokens = [length for length, _ in mine]
    gaps = [math.log(m / o) for (_, m), (_, o) in zip(mine, other, strict=True)]
    if not gaps or gaps[-1] > 0:
        return Crossover(None, "not reached at the lengths measured")
    last = max((place for place, gap in enumerate(gaps) if gap > 0), default=None)
    if last is None:
        return Crossover(float(tokens[0]), "at the shortest length measured, or below")
    share = gaps[last] / (gaps[last] - gaps[last + 1])
    at = math.exp(math.log(tokens[last]) + share * math.log(tokens[last + 1] / tokens[last]))
    return Crossover(at, f"interpolated between {tokens[last]} and {tokens[last + 1]}")


def sampled_blocks(count: int, width: int = 2) -> tuple[slice, ...]:
    """A few runs of blocks, at the beginning, in the middle and at the end, ascending and apart from each other."""
    if count <= 3 * width:
        return (slice(0, count),)
    middle = (count - width) // 2
    return slice(0, width), slice(middle, middle + width), slice(count - width, count)


def spread_rows(count: int, wanted: int) -> tuple[int, ...]:
    """Some of ``count`` rows, ascending, evenly spread; all of them when no fewer are wanted."""
    taken = min(count, wanted)
    return tuple(place * count // taken for place in range(taken))
