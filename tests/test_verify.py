# SPDX-License-Identifier: Apache-2.0
"""Rules of a plan: every rule has a broken plan that only it must find first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from llsa_gen.errors import InternalError
from llsa_gen.ir import Axis, Plan, Stage
from llsa_gen.ir.tensors import sums
from llsa_gen.ir.verify import RULES, verify
from llsa_gen.lowering import lower, trace
from llsa_gen.spec import ENRICHMENTS, Spec
from llsa_gen.stages import Segment

DEEP = lower(Spec(levels=5))
BACK = lower(Spec(levels=2), "backward")


def with_stage(which: str, /, plan: Plan = DEEP, **changes: object) -> Plan:
    stages = (replace(stage, **changes) if stage.name == which else stage for stage in plan.stages)  # type: ignore[arg-type]
    return replace(plan, stages=tuple(stages))


def with_tensor(which: str, /, plan: Plan = DEEP, **changes: object) -> Plan:
    tensors = (replace(t, **changes) if t.name == which else t for t in plan.tensors)  # type: ignore[arg-type]
    return replace(plan, tensors=tuple(tensors))


def reordered(order: Callable[[list[Stage]], list[Stage]]) -> Plan:
    return replace(DEEP, stages=tuple(order(list(DEEP.stages))))


def without(which: str) -> Plan:
    return replace(BACK, stages=tuple(stage for stage in BACK.stages if stage.name != which))


def axes_of(name: str, last: str) -> tuple[Axis, ...]:
    return (*DEEP.tensor(name).axes[:3], Axis("feature", last))


BROKEN: dict[str, dict[str, Plan]] = {
    "unique_names": {
        "stage": with_stage("select_2", name="select_1"),
        "tensor": with_tensor("idx2", name="idx1"),
    },
    "known_tensors": {
        "input": with_stage("select_1", inputs=("q_pools", "k_pools", "idx9")),
        "output": with_stage("select_1", outputs=("idx",)),
    },
    "roles": {
        "output": replace(DEEP, outputs=("o",)),
        "input": with_tensor("idx1", role="input"),
    },
    "levels_in_range": {
        "too deep": with_tensor("q_pools", levels=(1, 2, 3, 4, 5, 6)),
        "gap": with_tensor("q_pools", levels=(1, 2, 4, 5)),
        "none": with_tensor("q_pools", levels=()),
    },
    "axes": {
        "packed rows": with_tensor("q_pools", levels=(1, 2, 3, 4)),
        "rank": with_tensor("lse", axes=DEEP.tensor("o").axes),
        "query heads": with_tensor("k", axes=DEEP.tensor("q").axes),
        "key rows": with_tensor("idx1", axes=axes_of("k_pools", "K1")),
        "width": with_tensor("v_pools", axes=axes_of("v_pools", "D")),
        "bounds": with_tensor("offsets1", BACK, axes=BACK.tensor("part_nodes1").axes),
    },
    "dtypes": {
        "sums": with_tensor("q_sums_2", dtype="bf16"),
        "carry": with_tensor("o_carry", dtype="bf16"),
        "lists": with_tensor("idx1", dtype="fp32"),
        "pools": with_tensor("q_pools", dtype="fp32"),
        "lse": with_tensor("lse", dtype="bf16"),
        "tables": with_tensor("rows1", BACK, dtype="fp32"),
        "pooled gradients": with_tensor("k_grad_1", BACK, dtype="bf16"),
        "partial sums": with_tensor("k_parts_0", BACK, dtype="bf16"),
        "gradients": with_tensor("k_grad", BACK, dtype="fp32"),
    },
    "coarsen_levels": {
        "gap": with_stage("coarsen_q_2", levels=(3, 5)),
        "tokens": with_stage("coarsen_q", levels=(0, 1)),
        "source": with_stage("coarsen_q_2", source_level=1),
        "empty": with_stage("coarsen_q", levels=()),
    },
    "select_order": {
        "fine first": reordered(lambda s: sorted(s, key=lambda stage: (stage.kind != "coarsen", stage.name))),
        "top of children": with_stage("select_5", candidates="children"),
        "all below": with_stage("select_1", candidates="all"),
        "level missing": reordered(lambda s: [stage for stage in s if stage.name != "select_3"]),
    },
    "segments_cover": {
        "missing": with_stage("attend_coarse", segments=(Segment(5, "all"), Segment(4, "lists"))),
        "twice": with_stage("attend_fine", segments=(Segment(0, "lists"), Segment(0, "lists"))),
        "all tokens": with_stage("attend_fine", segments=(Segment(0, "all"),)),
        "coarse without enrichment": replace(DEEP, spec=Spec(levels=5, enrichment="none")),
    },
    "carry_chain": {
        "first continues": with_stage("attend_coarse", carry=True),
        "last starts anew": with_stage("attend_fine", carry=False),
        "two final": with_stage("attend_coarse", final=True),
        "none final": with_stage("attend_fine", final=False),
    },
    "joined_walk": {
        "two": replace(DEEP, joined=True),
        "two for the gradient of q": replace(BACK, joined=True),
    },
    "inversions": {
        "missing": without("scatter_entries_2"),
        "wrong level": with_stage("count_entries_2", BACK, level=1),
        "phases missing": without("count_entries_1"),
        "phases of short lists": replace(BACK, short=(1,)),
    },
    "gradients_descend": {
        "level missing": without("attend_grad_kv_1"),
        "merge missing": without("merge_grad_kv_1"),
        "fine first": replace(BACK, stages=(*BACK.stages[:-6], *BACK.stages[-2:], *BACK.stages[-6:-2])),
        "top has more above": with_stage("attend_grad_kv_2", BACK, has_above=True),
        "nothing above": with_stage("merge_grad_kv_0", BACK, has_above=False),
    },
    "declared_reads": {
        "hidden": with_stage("attend_coarse", inputs=("q", "k_pools", "v_pools", "idx3", "idx4", "idx5")),
        "idle": with_stage("attend_fine", inputs=("q", "k", "v", "idx1", "idx2", "o_carry", "lse_carry")),
        "refined": replace(DEEP, spec=Spec(levels=5, enrichment="exclude_refined")),
        "wrong level": with_tensor("idx2", levels=(1,), axes=(*DEEP.tensor("idx1").axes[:3], Axis("entry", "K1"))),
    },
    "declared_writes": {
        "hidden": with_stage("attend_fine", outputs=("o",)),
        "idle": with_stage("coarsen_q", outputs=("q_pools", "q_sums_2", "q_sums_4")),
        "sums": with_stage("coarsen_q", emit_sums=False),
    },
    "single_producer": {
        "level twice": with_stage("coarsen_q_2", levels=(3, 4, 5), outputs=("q_pools",), emit_sums=False),
    },
    "produced_before_use": {
        "gradients of the level above": replace(
            BACK, stages=(*BACK.stages[:-5], BACK.stages[-4], BACK.stages[-5], *BACK.stages[-3:])
        ),
        "sums": reordered(lambda s: [s[1], s[0], *s[2:]]),
        "pools": reordered(lambda s: [*s[9:14], *s[:9], *s[14:]]),
    },
    "outputs_produced": {
        "declared only": replace(DEEP, tensors=(*DEEP.tensors, sums("q", 1))),
    },
    "no_unused_temporaries": {
        "sums": with_stage("coarsen_q_3", source_level=0, inputs=("q",)),
    },
}


def cases() -> list[tuple[str, str]]:
    return [(rule, case) for rule, plans in BROKEN.items() for case in plans]


@pytest.mark.parametrize(("rule", "case"), cases())
def test_a_broken_plan_is_found_by_its_rule(rule: str, case: str) -> None:
    with pytest.raises(InternalError, match=f"^{rule}: "):
        verify(BROKEN[rule][case])


def test_every_rule_has_a_broken_plan() -> None:
    assert list(BROKEN) == list(RULES)


@pytest.mark.parametrize("levels", range(1, 7))
@pytest.mark.parametrize("enrichment", ENRICHMENTS)
@pytest.mark.parametrize("block", [4, 16, 128])
def test_every_step_of_lowering_keeps_every_rule(levels: int, enrichment: str, block: int) -> None:
    for _, plan in trace(Spec(levels=levels, enrichment=enrichment, block=block)):
        verify(plan)


def test_the_message_names_the_rule_the_problem_and_the_spec() -> None:
    with pytest.raises(InternalError) as caught:
        verify(BROKEN["single_producer"]["level twice"])
    assert "level 5 of q_pools is produced more than once" in str(caught.value)
    assert "Spec(levels=5" in str(caught.value)
