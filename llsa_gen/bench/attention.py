# SPDX-License-Identifier: Apache-2.0
"""Attention at one length: checked, then LLSA, dense attention and the rates of the machine in turn, then stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from llsa_gen.bench import flex, rates
from llsa_gen.bench.dense import Dense, dense_of
from llsa_gen.bench.judge import examine, sample_of
from llsa_gen.bench.request import DENSE_ROWS, Request
from llsa_gen.bench.rows import FORWARD, TRAINING, Row, Times, Work, row
from llsa_gen.bench.statistics import Rates
from llsa_gen.codegen import render
from llsa_gen.cost import Cost, measure
from llsa_gen.evidence.calls import attention, leaves, upward_gradients
from llsa_gen.evidence.passes import Pass, passes
from llsa_gen.ir.sizes import short_lists
from llsa_gen.ir.types import Direction
from llsa_gen.ops.execute import repeat_steps
from llsa_gen.spec import Spec
from llsa_gen.timing import CPU, Call, Rounds, in_turns
from llsa_gen.workloads import Qkv, clustered_qkv

SLICE = "sdpa_slice"
"""Dense attention of some rows where all of them are measured too: what extrapolating would have said."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Point:
    """One length.

    Attributes:
        request: What was asked for.
        tokens: The length.
    """

    request: Request
    tokens: int

    @cached_property
    def spec(self) -> Spec:
        """The spec at this length."""
        return self.request.spec_at(self.tokens)

    @cached_property
    def qkv(self) -> Qkv:
        """The inputs."""
        return clustered_qkv(self.spec, 1, self.request.heads, self.tokens)

    @cached_property
    def dense(self) -> dict[str, Dense]:
        """Dense attention by name: of all rows and of some, or of some only."""
        some = dense_of(self.qkv, DENSE_ROWS)
        if self.tokens > self.request.dense_limit:
            return {"sdpa": some}
        whole = {"sdpa": dense_of(self.qkv, self.tokens)}
        return whole if some.factor == 1.0 else {**whole, SLICE: some}

    @property
    def seconds(self) -> float:
        """The time for each group of calls: forward, training, and the stages of both."""
        return self.request.seconds / (4 if self.spec.gradient else 2)

    def cost(self, direction: Direction) -> Cost:
        """The model of a pass."""
        plan = render(self.spec).plan(CPU, direction, short_lists(self.spec, self.tokens))
        return measure(plan, self.tokens, 1, self.request.heads)


def measure_point(request: Request, tokens: int, say: Say) -> dict[str, Any]:
    """Measures one length.

    Returns:
        ``tokens``, ``slug``, ``check``, ``rows`` (of type `Row`) and ``notes``.
    """
    point = Point(request, tokens)
    where = f"{tokens:,} tokens"
    say(f"{where}: building what is missing and checking results")
    checked = examine(point.spec, point.qkv, point.dense["sdpa"])
    rows: list[Row] = []
    notes: dict[str, str] = {}
    if checked["right"]:
        say(f"{where}: forward")
        rows += forward(point, notes)
        if point.spec.gradient:
            say(f"{where}: forward and backward")
            rows += training(point)
        say(f"{where}: stages")
        rows += stages(point)
    return {"tokens": tokens, "slug": point.spec.slug, "check": checked, "rows": rows, "notes": notes}


@torch.inference_mode()
def forward(point: Point, notes: dict[str, str]) -> list[Row]:
    """Rows of the forward pass."""
    calls: dict[str, Call] = {"llsa": partial(attention, point.spec, *point.qkv)}
    calls |= {name: dense.forward for name, dense in point.dense.items()}
    calls |= _flex(point, notes)
    cost = point.cost("forward")
    return _rows(point, FORWARD, calls, Work(int(cost.flops), stages_of(cost)), int(cost.dense_flops))


def training(point: Point) -> list[Row]:
    """Rows of a forward and a backward pass."""
    given, (o_grad, _) = leaves(point.qkv), upward_gradients(point.qkv[2])

    def mine() -> Sequence[Tensor]:
        return torch.autograd.grad(attention(point.spec, *given)[0], given, o_grad)

    calls: dict[str, Call] = {"llsa": mine}
    calls |= {name: dense.training() for name, dense in point.dense.items()}
    both = [point.cost("forward"), point.cost("backward")]
    work = Work(sum(int(cost.flops) for cost in both), tuple(stage for cost in both for stage in stages_of(cost)))
    return _rows(point, TRAINING, calls, work, sum(int(cost.dense_flops) for cost in both))


@torch.inference_mode()
def stages(point: Point) -> list[Row]:
    """Rows of every stage: its kernels, launched again by themselves on the tensors of a pass."""
    rows: list[Row] = []
    for one in passes(point.spec, point.qkv, CPU):
        steps = one.repeatables()
        calls: dict[str, Call] = {name: repeat_steps(some, one.run) for name, some in steps.items()}
        works = stage_works(one, point.cost(one.direction))
        times, found = _timed(point, calls)
        part = f"stages of {one.direction}"
        rows += [
            row(point.tokens, point.spec.depth, part, name, times[name], works[name], found, 1.0) for name in calls
        ]
    return rows


def stage_works(one: Pass, cost: Cost) -> dict[str, Work]:
    """The model of everything that can be run by itself; phases that go together are added up."""
    by_name = {stage.name: (int(stage.flops), int(stage.bytes)) for stage in cost.stages}
    works = {}
    for name, steps in one.repeatables().items():
        parts = tuple(by_name[step.stage.name] for step in steps)
        works[name] = Work(sum(flops for flops, _ in parts), parts)
    return works


def stages_of(cost: Cost) -> tuple[tuple[int, int], ...]:
    """Flops and bytes of every stage."""
    return tuple((int(stage.flops), int(stage.bytes)) for stage in cost.stages)


def _rows(point: Point, part: str, calls: Mapping[str, Call], mine: Work, dense_flops: int) -> list[Row]:
    """Times the calls; what FlexAttention computes is the attend stages."""
    times, found = _timed(point, calls)
    attend = Work(int(point.cost("forward").flops_of("attend")))
    works = {"llsa": mine, "flex": attend, "sdpa": Work(dense_flops), SLICE: Work(dense_flops)}
    factors = {name: dense.factor for name, dense in point.dense.items()}
    return [
        row(point.tokens, point.spec.depth, part, name, times[name], works[name], found, factors.get(name, 1.0))
        for name in calls
    ]


def _timed(point: Point, calls: Mapping[str, Call]) -> tuple[Times, Rates]:
    """Times calls in turn with those that tell the rates of the machine."""
    times = in_turns({**calls, **rates.calls()}, Rounds(point.seconds))
    return times, rates.rates_of(times)


def _flex(point: Point, notes: dict[str, str]) -> dict[str, Call]:
    """FlexAttention where it runs and is right; else a note says why it is not there."""
    if not point.request.flex:
        notes["flex"] = "not asked for"
        return {}
    try:
        call = flex.flex_call(point.spec, point.qkv)
        why = [call] if isinstance(call, str) else flex.right(sample_of(point.spec, point.qkv), call()[:1, :1])
    except Exception as error:  # noqa: BLE001  (its compiler fails in many ways, none of which ends a benchmark)
        why = [f"it does not run here: {type(error).__name__}: {str(error)[:300]}"]
    if why or isinstance(call, str):
        notes["flex"] = "; ".join(why)
        return {}
    return {"flex": call}
