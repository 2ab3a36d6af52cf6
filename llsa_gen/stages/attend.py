# SPDX-License-Identifier: Apache-2.0
"""Attend: softmax attention of every query over its coarse nodes and its selected tokens.

A key ``j`` of a segment of level ``l`` has weight ``w_j`` (the level weight at ``c_l(j)``; 1 for tokens), and

    s_j = scale * q_i . key_j        lse_i = ln sum_j w_j e^{s_j}        o_i = sum_j w_j e^{s_j} value_j / e^{lse_i}

over the keys of all segments together, as a multiset. In joined plans one stage covers all segments; in others each of
two covers a part: the one that is not final writes ``(o_carry, lse_carry)`` in fp32, and the one with ``carry``
continues from there:

    lse = logaddexp(lse_carry, lse_here)        o = e^{lse_carry - lse} o_carry + e^{lse_here - lse} o_here

A query without keys has ``o = 0`` and ``lse = -inf``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

from llsa_gen.ir import names
from llsa_gen.ir.types import KernelKey, Piece, Plan, Stage

if TYPE_CHECKING:
    from llsa_gen.ir.sizes import Number, Sizes


class Segment(NamedTuple):
    """Keys of one level.

    Attributes:
        level: The level of the keys.
        keys: ``all`` nodes of the level, or the children of the ``lists`` one level up.
    """

    level: int
    keys: Literal["all", "lists"]


@dataclass(frozen=True, slots=True)
class SegmentStage(Stage):
    """A stage that walks the keys of some segments, query by query.

    Attributes:
        segments: The keys, coarse to fine.
        carry: Whether it continues from what an earlier stage left.
        final: Whether it writes the result; otherwise it leaves it to a later stage.
    """

    segments: tuple[Segment, ...]
    carry: bool
    final: bool

    def keys_read(self, plan: Plan) -> tuple[Piece, ...]:
        """The rows of k and v, and the lists that say which of them."""
        levels = [segment.level for segment in self.segments]
        rows = [Piece(names.rows_of(self.inputs, operand, level), level) for operand in ("k", "v") for level in levels]
        return (
            *rows,
            *(Piece(names.lists(level), level) for level in list_levels(self.segments, plan.spec.enrichment)),
        )

    def keys_scored(self, sizes: Sizes) -> Number:
        """Keys per query that the kernel visits, also those that a mask leaves out afterwards."""
        total: Number = 0
        for segment in self.segments:
            total = total + sizes.candidates(segment.level)
        return total

    def keys_attended(self, sizes: Sizes, enrichment: str) -> Number:
        """Keys per query in the softmax: without the nodes whose children stand in for them."""
        total = self.keys_scored(sizes)
        if enrichment == "exclude_refined":
            for segment in self.segments:
                total = total - (sizes.selected(segment.level) if segment.level else 0)
        return total

    @property
    def part(self) -> str:
        """``coarse`` (pooled keys only), ``fine`` (tokens only) or ``whole`` (both, as joined plans keep it)."""
        is_fine = {segment.level == 0 for segment in self.segments}
        return "whole" if len(is_fine) > 1 else "fine" if True in is_fine else "coarse"

    @property
    def pools_beside(self) -> tuple[str, ...]:
        """The pools of a stage over pooled keys and tokens; one over pooled keys alone takes them for k and v."""
        return (names.pools("k"), names.pools("v")) if self.part == "whole" else ()

    @property
    def factory(self) -> str:
        return f"{self.kind}_{self.part}"

    def kernel(self, plan: Plan) -> KernelKey:
        return KernelKey(self.kind, (("part", self.part),))


@dataclass(frozen=True, slots=True)
class Attend(SegmentStage):
    """Attention over some segments; it carries ``o_carry`` and ``lse_carry`` and returns ``o`` and ``lse``."""

    kind: ClassVar[str] = "attend"
    template: ClassVar[str] = "attend"

    def reads(self, plan: Plan) -> tuple[Piece, ...]:
        carried = [Piece(name, 0) for name in names.CARRY] if self.carry else []
        return (Piece("q", 0), *self.keys_read(plan), *carried)

    def writes(self, plan: Plan) -> tuple[Piece, ...]:
        return tuple(Piece(name, 0) for name in (names.RESULTS if self.final else names.CARRY))

    def flops(self, sizes: Sizes) -> Number:
        """A dot product and a weighted value per query and key; exponentials are not counted."""
        flops = key_flops(sizes.symbol("Nq"), self.keys_scored(sizes), sizes.symbol("D"), sizes.symbol("Dv"))
        return sizes.symbol("B") * sizes.symbol("H") * flops


def list_levels(segments: Iterable[Segment], enrichment: str) -> tuple[int, ...]:
    """The levels of the lists that segments need, ascending: the parents of the keys, and what replaces a node."""
    parents = {segment.level + 1 for segment in segments if segment.keys == "lists"}
    refined = {segment.level for segment in segments if segment.level} if enrichment == "exclude_refined" else set()
    return tuple(sorted(parents | refined))


def key_flops(queries: Number, keys: Number, head_dim: Number, value_dim: Number) -> Number:
    """Flops of attention of ``queries`` queries, each over ``keys`` keys."""
    return 2 * queries * keys * (head_dim + value_dim)
