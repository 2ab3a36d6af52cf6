# SPDX-License-Identifier: Apache-2.0
"""Sizes of a plan: the one place where node counts, list lengths and key counts are formulas.

The formulas are written once. They run on integers (:class:`IntSizes`, exact at every ragged end and without
sympy) and on symbols (``llsa_gen.cost.symbols``), which differ only in what a symbol, a ceiling and a minimum are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from llsa_gen.spec import Spec

Number: TypeAlias = Any
"""An int or a sympy expression; sympy has no types for mixed arithmetic."""


class Sizes(ABC):
    """What the symbols of a spec of known depth stand for.

    Attributes:
        depth: Number of levels.
    """

    def __init__(self, depth: int) -> None:
        self.depth = depth

    @abstractmethod
    def symbol(self, name: str) -> Number:
        """The value of ``B, H, Hk, Nq, Nk, D, Dv, b, G`` (pieces of the queries), ``K<level>`` or ``S<level>``."""

    @abstractmethod
    def ceil_div(self, dividend: Number, divisor: Number) -> Number:
        """The quotient rounded up."""

    @abstractmethod
    def minimum(self, bound: Number, growing: Number) -> Number:
        """The smaller of the two; ``bound`` is free of the sequence length or grows no faster than ``growing``."""

    def extent(self, text: str) -> Number:
        """The value of an axis extent such as ``n1k+n2k``: a sum of nodes, parts, numbers and symbols."""
        total: Number = 0
        for term in text.split("+"):
            total = total + self._term(term)
        return total

    def _term(self, text: str) -> Number:
        if text.isdigit():
            return int(text)
        if text[0] == "n":
            return self.nodes(int(text[1:-1]), text[-1])
        return self.parts(int(text[1:])) if text[0] == "P" else self.symbol(text)

    def nodes(self, level: int, side: str) -> Number:
        """n_l = ceil(N / b**l), the nodes of a level; level 0 is the tokens."""
        length = self.symbol(f"N{side}")
        return self.ceil_div(length, self.symbol("b") ** level) if level else length

    def candidates(self, level: int) -> Number:
        """Key nodes of a level that a query can see: all at the top, below it the children of its list.

        Rows that selected the shorter last node see a few less; this is the largest count over all rows and the exact
        count of every row that did not.
        """
        nodes = self.nodes(level, "k")
        if level == self.depth:
            return nodes
        return self.minimum(self.selected(level + 1) * self.symbol("b"), nodes)

    def selected(self, level: int) -> Number:
        """Entries of a row of a list: K_l, or all candidates when there are fewer."""
        return self.minimum(self.symbol(f"K{level}"), self.candidates(level))

    def parts(self, level: int) -> Number:
        """Places for the parts of the long inverted lists of a level.

        A list of more than S entries has ceil(count / S) < 2 count / S parts, and all lists together have n K entries.
        """
        entries = self.nodes(level, "q") * self.symbol(f"K{level}")
        return 2 * self.ceil_div(entries, self.symbol(f"S{level}"))


class IntSizes(Sizes):
    """Sizes in plain integers.

    Args:
        spec: The spec; its depth must be a number.
        queries: Length of the query side.
        keys: Length of the key side.
        batch: Batch size.
        heads: Heads of the query side.
        key_heads: Heads of the key side.
    """

    def __init__(self, spec: Spec, queries: int, keys: int, batch: int, heads: int, key_heads: int) -> None:
        super().__init__(spec.depth)
        self._values = {"Nq": queries, "Nk": keys, "B": batch, "H": heads, "Hk": key_heads, **constants(spec)}

    @classmethod
    def square(cls, spec: Spec, length: int, batch: int = 1, heads: int = 1) -> IntSizes:
        """Sizes of self-attention: as many keys and key heads as queries and heads."""
        return cls(spec, length, length, batch, heads, heads)

    def symbol(self, name: str) -> int:
        return self._values[name]

    def ceil_div(self, dividend: int, divisor: int) -> int:
        return -(-dividend // divisor)

    def minimum(self, bound: int, growing: int) -> int:
        return min(bound, growing)


def constants(spec: Spec) -> dict[str, int]:
    """The symbols that a spec fixes: ``b``, ``D``, ``Dv``, ``G``, ``K1``.. and ``S1``.. ."""
    topks = {f"K{level}": topk for level, topk in enumerate(spec.topks, start=1)}
    entries = {f"S{level}": part_entries(spec, level) for level in range(1, spec.depth + 1)}
    splits = {"G": query_splits(spec)}
    return {"b": spec.block, "D": spec.head_dim, "Dv": spec.dim_v, **topks, **entries, **splits}


SHORT_NODES = 512
"""Nodes of lists that are inverted in one launch, at most: their counts, by chunk, take 64 KiB of shared memory. The
kernels for sm80 run on every GPU of that generation, some of which give a block no more than 99 KiB."""
SHORT_ENTRIES = 2**14
"""Entries of such lists, at most: one block of 512 threads has walked them in 32 steps, or one thread of a CPU in less
time than two more launches take."""


def is_short(nodes: int, entries: int) -> bool:
    """Whether lists of so many entries a head, which name so many nodes, are inverted in one launch."""
    return nodes <= SHORT_NODES and entries <= SHORT_ENTRIES


@lru_cache(maxsize=1024)
def short_lists(spec: Spec, length: int) -> tuple[int, ...]:
    """The levels whose lists are inverted in one launch where sequences have this length."""
    sizes = IntSizes.square(spec, length)
    levels = range(1, spec.depth + 1)
    nodes = {level: sizes.nodes(level, "k") for level in levels}
    return tuple(level for level in levels if is_short(nodes[level], nodes[level] * spec.topks[level - 1]))


PART_QUERIES = 1024
"""Queries of a part of an inverted list, at least: enough that adding up the parts costs little beside them."""


def part_entries(spec: Spec, level: int) -> int:
    """S: entries of an inverted list of a level that one block of threads walks; longer lists come in parts.

    An entry stands for ``b**level`` queries. A list is K entries long in the mean; with at least ``2 K / b**(level-1)``
    entries in a part, all parts of a level together have at most as many rows as the sequence has tokens.
    """
    enough = -(-PART_QUERIES // spec.block**level)
    return int(max(enough, -(-2 * spec.topks[level - 1] // spec.block ** (level - 1))))


def query_splits(spec: Spec) -> int:
    """Pieces that the queries are cut into where every query attends every key: parallel work beyond the few keys.

    As many as leave all partial sums together with at most as many rows as the sequence has tokens, 16 at most.
    """
    return int(min(16, spec.block**spec.depth))
