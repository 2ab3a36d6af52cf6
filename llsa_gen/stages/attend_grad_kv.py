# SPDX-License-Identifier: Apache-2.0
"""Attend grad kv: the gradients of the keys and values of one level over the queries that attended them.

    v_sum_j = sum_i p_ij o_grad_i        k_sum_j = scale sum_i s_grad_ij q_i        (p and s_grad as in attend_grad_q)

    k_grad_l[j] = k_sum_j / c_l(j) + k_grad_{l+1}[j // b]            (likewise v; c_0 = 1; fp32 for l > 0)

so that the gradient of level l holds what every token below a node gets through that node and all above it; at level 0
it is the gradient of k. The queries of a node of level L are all queries; below it, those in the rows of the inverted
list of its parent. They are added in the order of the sequence, so the result is the same bit by bit on every run.

Where the work of one node is too much for one block of threads it comes in parts, which write their plain sums to
``k_parts_l`` and ``v_parts_l``; the stage `merge_grad_kv` finishes those nodes. At level L that is every node (the
queries are cut into equal pieces), below it the children of nodes with a long inverted list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from llsa_gen.ir import names
from llsa_gen.ir.types import KernelKey, Piece, Plan, Stage
from llsa_gen.stages.attend import Segment

if TYPE_CHECKING:
    from llsa_gen.ir.sizes import Number, Sizes


@dataclass(frozen=True, slots=True)
class GradKVStage(Stage):
    """A stage that writes the gradients of the keys and values of one level.

    Attributes:
        segment: The level of the keys, and whether all of them are attended or the children of lists.
        has_above: Whether the level above has gradients to pass on.
        in_parts: Whether long work comes in parts.
    """

    segment: Segment
    has_above: bool
    in_parts: bool

    @property
    def level(self) -> int:
        """The level of the keys."""
        return self.segment.level

    @property
    def part(self) -> str:
        """``all`` (the coarsest level), ``lists`` (other pooled levels) or ``fine`` (tokens)."""
        return "all" if self.segment.keys == "all" else "lists" if self.level else "fine"

    @property
    def factory(self) -> str:
        return f"{self.kind}_{self.part}"

    @property
    def gradients(self) -> tuple[Piece, ...]:
        """What the level gets."""
        return tuple(Piece(names.gradient(operand, self.level), self.level) for operand in ("k", "v"))

    @property
    def parts(self) -> tuple[Piece, ...]:
        """The partial sums."""
        return tuple(Piece(names.parts(operand, self.level), self.level) for operand in ("k", "v"))

    @property
    def above(self) -> tuple[Piece, ...]:
        """What the level above passes on."""
        level = self.level + 1
        return tuple(Piece(names.gradient(operand, level), level) for operand in ("k", "v")) if self.has_above else ()

    @property
    def part_tables(self) -> tuple[Piece, ...]:
        """How the inverted lists of the level above are cut."""
        if self.segment.keys == "all" or not self.in_parts:
            return ()
        level = self.level + 1
        return Piece(names.part_offsets(level), level), Piece(names.part_nodes(level), level)

    def kernel(self, plan: Plan) -> KernelKey:
        level: tuple[tuple[str, int | str], ...] = (("level", self.level),) if self.part == "lists" else ()
        return KernelKey(self.kind, (("part", self.part), *level))


@dataclass(frozen=True, slots=True)
class AttendGradKV(GradKVStage):
    """The sums over queries, finished where a node's work is done at once."""

    kind: ClassVar[str] = "attend_grad_kv"
    template: ClassVar[str] = "attend_grad_kv"

    def reads(self, plan: Plan) -> tuple[Piece, ...]:
        shared = tuple(Piece(name, 0) for name in ("q", "o_grad", "lse", names.DELTA))
        rows = tuple(Piece(names.rows_of(self.inputs, operand, self.level), self.level) for operand in ("k", "v"))
        return (*shared, *rows, *self.lists(plan), *self.part_tables, *self.above)

    def writes(self, plan: Plan) -> tuple[Piece, ...]:
        if self.is_finished_later:
            return self.parts
        return (*self.gradients, *self.parts) if self.in_parts else self.gradients

    @property
    def is_finished_later(self) -> bool:
        """Whether all of it comes in parts."""
        return self.in_parts and self.segment.keys == "all"

    def lists(self, plan: Plan) -> tuple[Piece, ...]:
        """The inverted lists of the parents, and the level's own where they say which nodes a query leaves out."""
        up = self.level + 1
        inverted = () if self.segment.keys == "all" else (Piece(names.offsets(up), up), Piece(names.rows(up), up))
        is_refined = plan.spec.enrichment == "exclude_refined" and self.level > 0
        return (*inverted, Piece(names.lists(self.level), self.level)) if is_refined else inverted

    def flops(self, sizes: Sizes) -> Number:
        """Four products per query and key: the logit, the gradient of its weight, and the query into two sums."""
        per_key = 4 * (sizes.symbol("D") + sizes.symbol("Dv"))
        pairs = sizes.symbol("Nq") * sizes.candidates(self.level)
        return sizes.symbol("B") * sizes.symbol("H") * pairs * per_key
