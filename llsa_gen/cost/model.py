# SPDX-License-Identifier: Apache-2.0
"""The cost model: what every stage of a plan computes and moves.

Flops count additions and multiplications of matrix products and sums; exponentials, comparisons and masks are left
out, they are equal for all schedules of a plan. Bytes are compulsory: every piece is read or written once by every
stage that uses it, so gathers that miss the caches come on top.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

from llsa_gen.cost.symbols import SymbolSizes, positive
from llsa_gen.ir import names
from llsa_gen.ir.sizes import IntSizes, Number, Sizes
from llsa_gen.ir.types import Plan, TensorType

if TYPE_CHECKING:
    from llsa_gen.stages import SegmentStage


@dataclass(frozen=True, slots=True)
class StageCost:
    """One stage; all values are ints or sympy expressions.

    Attributes:
        name: The stage.
        kind: Its kind.
        flops: Additions and multiplications.
        bytes_read: Compulsory reads.
        bytes_written: Compulsory writes.
    """

    name: str
    kind: str
    flops: Number
    bytes_read: Number
    bytes_written: Number

    @property
    def bytes(self) -> Number:
        """Reads and writes together."""
        return self.bytes_read + self.bytes_written


@dataclass(frozen=True, slots=True)
class Cost:
    """A plan; all values are ints or sympy expressions.

    Attributes:
        stages: One row per stage, in order.
        keys_per_query: Keys in the softmax of a query, a multiset; rows that selected the shorter last node have less.
        dense_flops: Flops of dense attention, or of its gradients, on the same inputs.
        saved_memory: Bytes kept between a forward and its backward pass: q, k, v, o and the log-sum-exps.
        workspace: Largest sum of bytes of the temporaries alive at a time; results come on top.
        known: The symbols that the spec fixes, with their values; empty for numbers.
    """

    stages: tuple[StageCost, ...]
    keys_per_query: Number
    dense_flops: Number
    saved_memory: Number
    workspace: Number
    known: tuple[tuple[Any, int], ...] = field(default=(), repr=False)

    @property
    def flops(self) -> Number:
        """Flops of all stages."""
        return sum(stage.flops for stage in self.stages)

    @property
    def bytes(self) -> Number:
        """Compulsory traffic of all stages."""
        return sum(stage.bytes for stage in self.stages)

    def flops_of(self, kind: str) -> Number:
        """Flops of the stages of one kind."""
        return sum(stage.flops for stage in self.stages if stage.kind == kind)

    def at(self, N: int, B: int = 1, H: int = 1) -> Cost:
        """The same in numbers."""
        values = dict(self.known) | {positive("N"): N, positive("B"): B, positive("H"): H}
        return self._map(lambda value: int(value.subs(values)) if hasattr(value, "subs") else int(value))

    def _map(self, change: Callable[[Number], Number]) -> Cost:
        stages = tuple(
            replace(
                stage,
                flops=change(stage.flops),
                bytes_read=change(stage.bytes_read),
                bytes_written=change(stage.bytes_written),
            )
            for stage in self.stages
        )
        return Cost(
            stages=stages,
            keys_per_query=change(self.keys_per_query),
            dense_flops=change(self.dense_flops),
            saved_memory=change(self.saved_memory),
            workspace=change(self.workspace),
        )


def cost(plan: Plan) -> Cost:
    """The cost of a plan in symbols."""
    import sympy

    sizes = SymbolSizes(plan.spec)
    return replace(
        _cost(plan, sizes, lambda peaks: sympy.Max(*set(peaks), evaluate=False)), known=tuple(sizes.known.items())
    )


def measure(plan: Plan, N: int, B: int = 1, H: int = 1) -> Cost:
    """The cost of a plan in numbers, by the same formulas and without sympy."""
    return _cost(plan, IntSizes.square(plan.spec, N, B, H), max)


def _cost(plan: Plan, sizes: Sizes, maximum: Callable[[list[Number]], Number]) -> Cost:
    walks = cast("tuple[SegmentStage, ...]", (*plan.of_kind("attend"), *plan.of_kind("attend_grad_q")))
    heads = sizes.symbol("B") * sizes.symbol("H")
    return Cost(
        stages=tuple(
            StageCost(
                name=stage.name,
                kind=stage.kind,
                flops=stage.flops(sizes),
                bytes_read=stage.bytes_read(plan, sizes),
                bytes_written=stage.bytes_written(plan, sizes),
            )
            for stage in plan.stages
        ),
        keys_per_query=sum(stage.keys_attended(sizes, plan.spec.enrichment) for stage in walks),
        dense_flops=heads * _dense_flops(plan, sizes),
        saved_memory=sum(tensor.bytes(sizes) for tensor in saved_tensors(plan)),
        workspace=maximum([_total(alive, sizes) for alive in live_temporaries(plan)]),
    )


def saved_tensors(plan: Plan) -> tuple[TensorType, ...]:
    """What is kept for a backward pass; pools and lists are computed again."""
    return tuple(tensor for tensor in plan.tensors if tensor.name in (*names.OPERANDS, *names.RESULTS))


def live_temporaries(plan: Plan) -> tuple[tuple[TensorType, ...], ...]:
    """For every stage the temporaries alive during it: from their first producer to their last reader."""
    alive = []
    for place in range(len(plan.stages)):
        before = {name for stage in plan.stages[: place + 1] for name in stage.outputs}
        after = {name for stage in plan.stages[place:] for name in (*stage.inputs, *stage.outputs)}
        names_now = before & after
        alive.append(tuple(t for t in plan.tensors if t.role == "temporary" and t.name in names_now))
    return tuple(alive)


def _dense_flops(plan: Plan, sizes: Sizes) -> Number:
    """Two products forward; backward the logits again, then one for the weights' gradients and one each for q, k, v."""
    pairs, dim, value_dim = sizes.symbol("Nq") * sizes.symbol("Nk"), sizes.symbol("D"), sizes.symbol("Dv")
    return 2 * pairs * (dim + value_dim if plan.direction == "forward" else 3 * dim + 2 * value_dim)


def _total(alive: Iterable[TensorType], sizes: Sizes) -> Number:
    return sum(tensor.bytes(sizes) for tensor in alive)
