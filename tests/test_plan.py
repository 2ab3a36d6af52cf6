# SPDX-License-Identifier: Apache-2.0
"""Plans and lowering: the names and shapes that kernels rely on, for every depth and enrichment."""

from __future__ import annotations

import subprocess
import sys
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llsa_gen.errors import InternalError, SpecError
from llsa_gen.ir import Piece, names
from llsa_gen.ir.reach import needed_stages
from llsa_gen.ir.sizes import IntSizes, short_lists
from llsa_gen.ir.text import format_plan
from llsa_gen.ir.types import Direction
from llsa_gen.lowering import PASSES, choose_depth, lower, plans_of, resolve_depth, trace, variants_of
from llsa_gen.lowering.fuse_coarsen import MAX_ROWS, MAX_SUM_BYTES, levels_per_pass
from llsa_gen.schedule import joins
from llsa_gen.spec import ENRICHMENTS, Spec
from llsa_gen.stages import STAGE_KINDS, Attend, Coarsen, Segment, SegmentStage
from llsa_gen.targets import list_targets

SPECS = st.builds(
    Spec,
    levels=st.integers(1, 6),
    block=st.sampled_from([4, 8, 16, 64, 128]),
    topk=st.sampled_from([1, 7, 32, "4 + l"]),
    head_dim=st.sampled_from([16, 64, 256]),
    value_dim=st.sampled_from([None, 80]),
    enrichment=st.sampled_from(ENRICHMENTS),
    dtype=st.sampled_from(["fp32", "fp16", "bf16"]),
)


def names_of(items: object) -> list[str]:
    return [item.name for item in items]  # type: ignore[attr-defined]


# -- the final plan -------------------------------------------------------------------------------


def test_the_default_plan_has_the_agreed_names() -> None:
    plan = lower(Spec())
    temporaries = ["q_pools", "k_pools", "v_pools", "idx2", "idx1", "o_carry", "lse_carry"]
    assert names_of(plan.tensors) == ["q", "k", "v", *temporaries, "o", "lse"]
    assert names_of(plan.stages) == [
        *("coarsen_q", "coarsen_k", "coarsen_v"),
        *("select_2", "select_1"),
        *("attend_coarse", "attend_fine"),
    ]
    assert (plan.inputs, plan.outputs) == (("q", "k", "v"), ("o", "lse"))
    assert plan.stage("attend_coarse") == Attend(
        name="attend_coarse",
        inputs=("q", "k_pools", "v_pools", "idx2"),
        outputs=("o_carry", "lse_carry"),
        segments=(Segment(2, "all"), Segment(1, "lists")),
        carry=False,
        final=False,
    )
    fine = plan.stage("attend_fine")
    assert fine.inputs == ("q", "k", "v", "idx1", "o_carry", "lse_carry")
    assert fine.outputs == ("o", "lse")


def test_axes_and_types_of_the_default_plan() -> None:
    plan = lower(Spec(value_dim=80))
    shapes = {tensor.name: (tensor.dtype, [axis.extent for axis in tensor.axes]) for tensor in plan.tensors}
    assert shapes["q_pools"] == ("bf16", ["B", "H", "n1q+n2q", "D"])
    assert shapes["v_pools"] == ("bf16", ["B", "Hk", "n1k+n2k", "Dv"])
    assert shapes["idx2"] == ("int32", ["B", "H", "n2q", "K2"])
    assert shapes["o_carry"] == ("fp32", ["B", "H", "Nq", "Dv"])
    assert shapes["lse"] == ("fp32", ["B", "H", "Nq"])
    assert shapes["o"] == ("bf16", ["B", "H", "Nq", "Dv"])


@pytest.mark.parametrize("levels", range(1, 7))
def test_without_enrichment_values_have_no_pyramid(levels: int) -> None:
    plan = lower(Spec(levels=levels, enrichment="none"))
    assert not [stage for stage in plan.stages if "v" in stage.inputs and stage.kind == "coarsen"]
    (attend,) = plan.of_kind("attend")
    assert isinstance(attend, Attend)
    assert (attend.name, attend.carry, attend.final) == ("attend_fine", False, True)
    assert attend.inputs == ("q", "k", "v", "idx1")


def test_exclude_refined_reads_the_lists_of_the_levels_it_attends() -> None:
    attend = lower(Spec(levels=3, enrichment="exclude_refined")).stage("attend_coarse")
    assert attend.inputs == ("q", "k_pools", "v_pools", "idx1", "idx2", "idx3")
    assert lower(Spec(levels=1, enrichment="exclude_refined")).stage("attend_coarse").inputs[-1] == "idx1"
    assert lower(Spec(levels=1)).stage("attend_coarse").inputs == ("q", "k_pools", "v_pools")


def test_deep_pyramids_are_coarsened_in_passes_that_read_sums() -> None:
    plan = lower(Spec(levels=5))
    stages = [stage for stage in plan.stages if isinstance(stage, Coarsen) and stage.operand == "q"]
    assert names_of(stages) == ["coarsen_q", "coarsen_q_2", "coarsen_q_3"]
    assert [stage.levels for stage in stages] == [(1, 2), (3, 4), (5,)]
    assert [stage.inputs for stage in stages] == [("q",), ("q_sums_2",), ("q_sums_4",)]
    assert [stage.outputs for stage in stages] == [("q_pools", "q_sums_2"), ("q_pools", "q_sums_4"), ("q_pools",)]
    assert plan.tensor("q_sums_2").dtype == "fp32"
    assert [getattr(plan.producer("q_pools", level), "name", None) for level in (1, 3, 5)] == names_of(stages)


@given(st.sampled_from([4, 8, 16, 32, 64, 128]), st.integers(2, 32).map(lambda step: 8 * step))
def test_a_pass_takes_as_many_levels_as_fit(block: int, width: int) -> None:
    count = levels_per_pass(block, width)

    def fits(levels: int) -> bool:
        return bool(block**levels <= MAX_ROWS and block ** (levels - 1) * width * 4 <= MAX_SUM_BYTES)

    assert count >= 1
    assert count == 1 or fits(count)
    assert not fits(count + 1)


# -- kernels --------------------------------------------------------------------------------------


def test_stages_that_do_the_same_share_a_kernel() -> None:
    plan = lower(Spec(levels=4, topk=8))
    kernels = {key.label: stages for key, stages in plan.kernels().items()}
    assert kernels == {
        "coarsen_width_64_source_tokens_levels_2_emit_sums_1": ("coarsen_q", "coarsen_k", "coarsen_v"),
        "coarsen_width_64_source_sums_levels_2_emit_sums_0": ("coarsen_q_2", "coarsen_k_2", "coarsen_v_2"),
        "select_topk_8_parent_topk_0": ("select_4",),
        "select_topk_8_parent_topk_8": ("select_3", "select_2", "select_1"),
        "attend_part_coarse": ("attend_coarse",),
        "attend_part_fine": ("attend_fine",),
    }
    assert next(iter(plan.kernels())).arg("width") == 64
    with pytest.raises(InternalError, match="no such argument"):
        next(iter(plan.kernels())).arg("topk")


def test_lists_of_different_width_need_different_kernels() -> None:
    plan = lower(Spec(levels=3, topk=(8, 4, 2), value_dim=80))
    assert [stage.kernel(plan).args for stage in plan.of_kind("select")] == [
        (("topk", 2), ("parent_topk", 0)),
        (("topk", 4), ("parent_topk", 2)),
        (("topk", 8), ("parent_topk", 4)),
    ]
    assert plan.stage("coarsen_v").kernel(plan).arg("width") == 80


def test_every_kind_of_stage_is_registered_under_its_name() -> None:
    used = {stage.kind for plan in plans_of(Spec()) for stage in plan.stages}
    assert used == set(STAGE_KINDS)
    for kind, stage in STAGE_KINDS.items():
        assert stage.template == kind
        assert stage.__doc__


# -- laws -----------------------------------------------------------------------------------------


@given(SPECS, st.sampled_from(["forward", "backward"]))
def test_lowering_is_a_function_and_plans_are_values(spec: Spec, direction: Direction) -> None:
    assert lower(spec, direction) == lower(spec, direction)
    assert hash(lower(spec, direction)) == hash(lower(spec, direction))
    assert [name for name, _ in trace(spec, direction)] == ["build", *(name for name, _ in PASSES)]


@given(SPECS, st.integers(1, 10**6))
def test_short_lists_are_inverted_in_one_launch(spec: Spec, length: int) -> None:
    short = short_lists(spec, length)
    plan, long, whole = lower(spec, "backward", short), *variants_of(lower(spec, "backward"))
    phases = {stage.level: stage.phase for stage in plan.of_kind("invert_index")}  # type: ignore[attr-defined]
    assert {level for level, phase in phases.items() if phase == "whole"} == phases.keys() & set(short)
    assert plan.kernels().keys() <= long.kernels().keys() | whole.kernels().keys()
    assert not {tensor.name for tensor in plan.tensors} & {f"counts{level}" for level in short}


@given(SPECS)
def test_both_directions_share_the_kernels_before_attention(spec: Spec) -> None:
    forward, backward = lower(spec), lower(spec, "backward")
    shared = [stage for stage in forward.stages if stage.kind in ("coarsen", "select")]
    assert backward.stages[: len(shared)] == tuple(shared)


@given(SPECS)
def test_only_what_is_wanted_is_needed(spec: Spec) -> None:
    backward = lower(spec, "backward")
    lists = [f"idx{level}" for level in range(1, spec.depth + 1)]
    kinds = {stage.kind for stage in needed_stages(backward, ("q_grad",))}
    assert kinds == {"coarsen", "select", "delta", "attend_grad_q"}
    given_lists = needed_stages(backward, names.GRADIENTS, lists)
    assert "select" not in {stage.kind for stage in given_lists}
    assert needed_stages(backward, names.GRADIENTS) == backward.stages


@given(SPECS)
def test_lists_and_results_are_the_same_tensors_in_every_step(spec: Spec) -> None:
    kept = {"q", "k", "v", "o", "lse", *(f"idx{level}" for level in range(1, spec.depth + 1))}
    seen = {tuple(tensor for tensor in plan.tensors if tensor.name in kept) for _, plan in trace(spec)}
    assert len(seen) == 1


@given(SPECS)
def test_packed_pools_hold_every_level_once(spec: Spec) -> None:
    plan = lower(spec)
    levels = tuple(range(1, spec.depth + 1))
    for operand in ("q", "k") if spec.enrichment == "none" else ("q", "k", "v"):
        pools = plan.tensor(f"{operand}_pools")
        assert pools.levels == levels
        written = [piece for stage in plan.stages for piece in stage.writes(plan) if piece.tensor == pools.name]
        assert written == [Piece(pools.name, level) for level in levels]


@given(SPECS, st.sampled_from(["forward", "backward"]))
def test_a_joined_plan_differs_in_one_stage_and_needs_no_carry(spec: Spec, direction: Direction) -> None:
    split, joined = (lower(spec, direction, joined=joined) for joined in (False, True))
    walk = "attend" if direction == "forward" else "attend_grad_q"
    (whole,) = joined.of_kind(walk)
    assert isinstance(whole, SegmentStage) and (whole.carry, whole.final) == (False, True)
    parts = split.of_kind(walk)
    assert whole.segments == tuple(
        segment for part in cast(tuple[SegmentStage, ...], parts) for segment in part.segments
    )
    assert [stage for stage in joined.stages if stage != whole] == [one for one in split.stages if one not in parts]
    carries = {tensor.name for tensor in split.tensors} - {tensor.name for tensor in joined.tensors}
    assert carries == {name for name in (*names.CARRY, names.Q_GRAD_CARRY) if name in parts[0].outputs}


@given(SPECS)
def test_cpus_join_what_queries_of_a_block_attend_where_they_fill_a_vector(spec: Spec) -> None:
    for target in list_targets():
        assert joins(spec, target.language) == (target.name == "cpu" and spec.block >= 16)


@given(SPECS)
def test_a_plan_can_be_read(spec: Spec) -> None:
    plan = lower(spec)
    text = format_plan(plan)
    assert all(f"  {name} " in text for name in [*names_of(plan.tensors), *names_of(plan.stages)])


def test_unknown_names_are_refused() -> None:
    plan = lower(Spec())
    with pytest.raises(InternalError, match="no such tensor"):
        plan.tensor("pools")
    with pytest.raises(InternalError, match="no such stage"):
        plan.stage("attend")
    assert plan.producer("q") is None
    assert names_of(plan.readers("idx2")) == ["select_1", "attend_coarse"]


# -- sizes ----------------------------------------------------------------------------------------


def test_extents_count_ragged_nodes() -> None:
    sizes = IntSizes(Spec(levels=3, block=4, topk=(8, 2, 3), value_dim=80), 65, 130, 2, 3, 1)
    assert [sizes.nodes(level, "q") for level in range(4)] == [65, 17, 5, 2]
    assert sizes.extent("n1k+n2k+n3k") == 33 + 9 + 3
    assert [sizes.extent(name) for name in ("B", "H", "Hk", "Nq", "Nk", "D", "Dv", "K1", "K3")] == [
        *(2, 3, 1, 65, 130, 64, 80, 8, 3)
    ]
    assert [sizes.candidates(level) for level in (3, 2, 1, 0)] == [3, 9, 8, 32]


# -- depth ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "levels"), [(1, 1), (128, 1), (16384, 2), (65536, 3), (262144, 3), (2**22, 4)])
def test_the_depth_grows_with_the_length(length: int, levels: int) -> None:
    assert choose_depth(Spec(), length).levels == levels
    assert resolve_depth(Spec(levels="auto", seq_len=length)) == Spec(levels=levels)
    assert lower(Spec(levels="auto", seq_len=length)) == lower(Spec(levels=levels))


@given(SPECS.filter(lambda spec: isinstance(spec.topk, int)), st.integers(1, 10**6))
def test_the_chosen_depth_has_the_fewest_flops_and_ties_go_to_fewer_levels(spec: Spec, length: int) -> None:
    choice = choose_depth(spec, length)
    totals = {row.levels: row.total for row in choice.rows}
    assert list(totals) == [1, 2, 3, 4, 5, 6]
    assert totals[choice.levels] == min(totals.values())
    assert all(total > totals[choice.levels] for levels, total in totals.items() if levels < choice.levels)
    assert resolve_depth(spec) is spec


def test_a_tie_of_two_depths_goes_to_the_smaller() -> None:
    spec = Spec(block=4, topk=2, head_dim=256, value_dim=16, enrichment="none")
    choice = choose_depth(spec, 33)
    assert choice.rows[0].total == choice.rows[1].total == min(row.total for row in choice.rows)
    assert choice.levels == 1


def test_depths_out_of_bounds_are_not_considered() -> None:
    spec = Spec(levels="auto", topk="8 // 2**l", seq_len=2**24)
    assert [row.levels for row in choose_depth(spec, 2**24).rows] == [1, 2, 3]
    with pytest.raises(SpecError, match="out of bounds at every depth"):
        resolve_depth(Spec(levels="auto", topk="l - l", seq_len=4096))


def test_lowering_needs_neither_torch_nor_sympy() -> None:
    program = (
        "import sys; from llsa_gen.spec import Spec; from llsa_gen.cost import measure; "
        "from llsa_gen.lowering import lower; "
        "measure(lower(Spec(levels='auto', seq_len=65536)), 65536); print({'torch', 'sympy'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
