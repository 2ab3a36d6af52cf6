# SPDX-License-Identifier: Apache-2.0
"""Sizes of a plan: the one place where node counts, list lengths and key counts are formulas.

The formulas are written once. They run on integers (:class:`IntSizes`, exact at every ragged end and without
sympy) and on symbols (``llsa_gen.cost.symbols``), which differ only in what a symbol, a ceiling and a minimum are.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
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
        """The value of ``B``, ``H``, ``Hk``, ``Nq``, ``Nk``, ``D``, ``Dv``, ``b`` or ``K<level>``."""

    @abstractmethod
    def ceil_div(self, dividend: Number, divisor: Number) -> Number:
        """The quotient rounded up."""

    @abstractmethod
    def minimum(self, bound: Number, growing: Number) -> Number:
        """The smaller of the two; ``bound`` is free of the sequence length or grows no faster than ``growing``."""

    def extent(self, text: str) -> Number:
        """The value of an axis extent such as ``n1k+n2k``."""
        total: Number = 0
        for term in text.split("+"):
            is_nodes = term[0] == "n"
            total = total + (self.nodes(int(term[1:-1]), term[-1]) if is_nodes else self.symbol(term))
        return total

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
    """The symbols that a spec fixes: ``b``, ``D``, ``Dv`` and ``K1``.. ."""
    topks = {f"K{level}": topk for level, topk in enumerate(spec.topks, start=1)}
    return {"b": spec.block, "D": spec.head_dim, "Dv": spec.dim_v, **topks}
