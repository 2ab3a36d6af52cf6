# SPDX-License-Identifier: Apache-2.0
"""Sizes in sympy symbols: exact ones with ceilings and minima, and the smooth ones of growth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llsa_gen.ir.sizes import Number, Sizes, constants

if TYPE_CHECKING:
    from llsa_gen.spec import Spec


class SymbolSizes(Sizes):
    """Exact sizes of self-attention in ``N, B, H, b, D, Dv`` and ``K``, or ``K_1, K_2, …`` where levels differ.

    Attributes:
        known: The symbols that the spec fixes, with their values.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec.depth)
        self._spec = spec
        self.known: dict[Any, int] = {self.symbol(name): value for name, value in constants(spec).items()}

    def symbol(self, name: str) -> Number:
        return positive(self._shown(name))

    def ceil_div(self, dividend: Number, divisor: Number) -> Number:
        import sympy

        return sympy.ceiling(dividend / divisor)

    def minimum(self, bound: Number, growing: Number) -> Number:
        import sympy

        return bound if bound == growing else sympy.Min(bound, growing, evaluate=False)

    def _shown(self, name: str) -> str:
        """The name of a symbol as people read it."""
        if name[0] == "K":
            return "K" if len(set(self._spec.topks)) == 1 else f"K_{name[1:]}"
        same = {"Nq": "N", "Nk": "N", "Hk": "H"}
        return "D" if name == "Dv" and self._spec.dim_v == self._spec.head_dim else same.get(name, name)


class SmoothSizes(SymbolSizes):
    """Sizes of a long sequence: nodes without ragged ends, lists filled up."""

    def ceil_div(self, dividend: Number, divisor: Number) -> Number:
        return dividend / divisor

    def minimum(self, bound: Number, growing: Number) -> Number:
        if growing.has(self.symbol("Nk")):
            return bound
        return min(bound, growing, key=lambda value: value.subs(self.known))


def positive(name: str) -> Any:
    """A symbol for a positive whole number."""
    import sympy

    return sympy.Symbol(name, positive=True, integer=True)
