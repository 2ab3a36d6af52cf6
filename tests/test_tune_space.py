# SPDX-License-Identifier: Apache-2.0
"""What the tuner tries: the schedules of every kernel, the check that none of them is wrong, and the model."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llsa_gen.codegen import KernelInstance, render
from llsa_gen.evidence.passes import passes
from llsa_gen.evidence.places import places_of
from llsa_gen.ir import names
from llsa_gen.ir.sizes import IntSizes, part_entries, query_splits
from llsa_gen.ir.types import Stage
from llsa_gen.jit import Machine
from llsa_gen.jit.isa import ISAS, Lanes, Vectors, vectors_of
from llsa_gen.schedule import Schedule, fits, solve, space
from llsa_gen.spec import Spec
from llsa_gen.stages import GradKVStage, Select
from llsa_gen.tuning.oracle import Idle, Oracle
from llsa_gen.tuning.prune import SLOWEST, VECTOR_KINDS, choices, held_bytes, idle, model_of, shares_of, tasks_of
from llsa_gen.workloads import clustered_qkv
from tests.kernels.calls import FORMS, inverted_in
from tests.schedules import CPU, kernel_named, loaded
from tests.strategies import budget, specs

TASK_KINDS = (*VECTOR_KINDS, "delta", "merge_grad_kv")
"""The kernels with a choice of tiles; what it decides is how many tasks there are."""
DEEP = Spec(levels=2, block=16, topk=(3, 2), head_dim=16, dtype="fp32")
APART = replace(DEEP, block=8)
"""A block so small that pooled keys and tokens have kernels of their own."""


@given(specs())
@budget(40)
def test_the_space_of_every_kernel_holds_the_default_and_no_kernel_twice(spec: Spec) -> None:
    for kernel in render(spec).kernels_for(CPU):
        offered = list(space(kernel.key, spec, CPU))
        assert solve(kernel.key, spec, CPU) in offered
        assert all(fits(kernel.key, spec, CPU, each) for each in offered)
        built = {str(kernel.with_schedule("cpu", each).arguments("cpu")) for each in offered}
        assert len(built) == len(offered)


@given(st.data())
@budget(12)
def test_every_schedule_of_the_space_is_right(data: st.DataObject) -> None:
    spec = data.draw(st.sampled_from((DEEP, APART)))
    kernel = data.draw(st.sampled_from(render(spec).kernels_for(CPU)))
    schedule = data.draw(st.sampled_from(list(space(kernel.key, spec, CPU))))
    assert oracle_of(spec).wrong(loaded(spec, kernel, schedule)) == ""


@cache
def oracle_of(spec: Spec) -> Oracle:
    return Oracle(spec, "cpu", "cpu")


def with_a_choice(spec: Spec) -> list[KernelInstance]:
    """The kernels of a spec that have more than one schedule."""
    return [kernel for kernel in render(spec).kernels_for(CPU) if len(set(space(kernel.key, spec, CPU))) > 1]


@pytest.mark.parametrize(
    ("spec", "kernel"),
    [
        pytest.param(spec, kernel, id=f"{spec.block}-{kernel.name}")
        for spec in (DEEP, APART)
        for kernel in with_a_choice(spec)
        if spec is DEEP or kernel.key.kind in ("attend", "attend_grad_q")
    ],
)
def test_every_kernel_that_is_tuned_has_work_in_the_check_and_is_missed_where_it_does_none(
    spec: Spec, kernel: KernelInstance
) -> None:
    made = loaded(spec, kernel, solve(kernel.key, spec, CPU))
    assert oracle_of(spec).wrong(made) == ""
    assert oracle_of(spec).wrong(Idle(made)) != "" and oracle_of(spec).sees(made)


@pytest.mark.parametrize("spec", [DEEP, Spec(levels=3, block=4, topk=3, head_dim=16, dtype="bf16")], ids=["16", "4"])
def test_lists_of_the_check_come_in_parts_on_every_level(spec: Spec) -> None:
    tensors = oracle_of(spec).passes[-1].run.tensors
    for level in range(1, spec.depth + 1):
        counts = (tensors[names.lists(level)] + 1).flatten().bincount()[1:]
        assert counts.max() > part_entries(spec, level)


def test_numbers_that_lead_out_of_memory_end_the_check() -> None:
    kernel = kernel_named(DEEP, "select_topk2_parent_topk0")
    why = oracle_of(DEEP).wrong(Idle(loaded(DEEP, kernel, solve(kernel.key, DEEP, CPU))))
    assert "idx2 holds" in why and "allowed -1 to 1" in why


INVERSIONS = {f"invert_index_phase{phase}" for phase in ("whole", "count", "scan", "scatter")}


@pytest.mark.parametrize(("target", "isa"), [("sm90", "sm90"), ("cpu", "x86-64-v3")])
@pytest.mark.parametrize("tokens", [300, 2**14, 2**20])
def test_kernels_that_a_length_does_not_launch_are_not_tried_but_named(target: str, isa: str, tokens: int) -> None:
    package = render(DEEP)
    tried = {one.kernel.name for one in choices(package, target, Machine("some", isa, 4), tokens, 1)}
    left = set(idle(package, target, tokens))
    assert not tried & left and left <= INVERSIONS
    if target == "sm90":
        assert tried & INVERSIONS and tried | left >= INVERSIONS


@pytest.mark.parametrize("form", FORMS)
def test_every_kernel_with_a_choice_has_a_place_where_it_is_timed(form: str) -> None:
    with inverted_in(form):
        both = tuple(passes(DEEP, clustered_qkv(DEEP, 1, 1, 300), "cpu", records=False))
        assert set(places_of(both)) == set(shares_of(render(DEEP), "cpu", 300, 1))


@given(specs(max_levels=3), st.integers(1, 64), st.integers(2**14, 2**24), st.integers(1, 2**20))
@budget(30)
def test_pruning_keeps_the_default_and_what_fits(spec: Spec, threads: int, cache: int, tokens: int) -> None:
    machine = Machine("some", "x86-64-v3", threads, {"L2": cache})
    found = choices(render(spec), "cpu", machine, tokens, 1)
    assert [one.share for one in found] == sorted((one.share for one in found), reverse=True)
    for one in found:
        assert one.candidates[0].schedule == one.default and not one.candidates[0].why
        assert {each.schedule for each in one.candidates} == set(space(one.kernel.key, spec, CPU))
        assert all(held_bytes(one.kernel, spec, each) <= cache for each in one.kept)


def counted(rows: int, columns: int, vectors: Vectors) -> float:
    """Time per useful multiply-add of a matrix that is summed up tile by tile: loads or multiply-adds, what is more."""
    tile = Lanes(vectors.width, vectors.registers).tile(rows, columns)
    loads = multiplied = 0
    for _ in product(range(0, rows, tile.rows), range(0, columns, tile.columns)):
        loads += tile.rows + tile.columns // tile.vector
        multiplied += tile.rows * (tile.columns // tile.vector)
    return max(loads, multiplied) / (rows * columns / vectors.width)


@pytest.mark.parametrize("isa", ISAS)
@given(spec=specs(max_levels=3), data=st.data())
@budget(15)
def test_the_model_counts_the_loads_of_the_register_tiles(isa: str, spec: Spec, data: st.DataObject) -> None:
    vectors, strip = vectors_of(isa), min(spec.block, 16)
    kernel = data.draw(st.sampled_from([one for one in render(spec).kernels_for(CPU) if one.key.kind in VECTOR_KINDS]))
    tile = data.draw(st.sampled_from(list(space(kernel.key, spec, CPU))))
    keys, values = spec.head_dim, spec.dim_v
    if kernel.key.kind == "select":
        assert model_of(kernel, spec, tile, vectors) == pytest.approx(counted(strip, tile.rows, vectors))
    elif kernel.key.kind == "attend":
        scores, sums = counted(strip, tile.rows, vectors), counted(tile.rows, values, vectors)
        expected = (keys * scores + values * sums) / (keys + values) * (1 + 3 / tile.keys)
        assert model_of(kernel, spec, tile, vectors) == pytest.approx(expected)
    else:
        assert model_of(kernel, spec, tile, vectors) >= 1


@pytest.mark.parametrize("isa", ISAS)
@given(spec=specs(max_levels=3))
@budget(15)
def test_the_model_never_puts_a_default_far_behind(isa: str, spec: Spec) -> None:
    for kernel in render(spec).kernels_for(CPU):
        models = {each: model_of(kernel, spec, each, vectors_of(isa)) for each in space(kernel.key, spec, CPU)}
        assert models[dict(kernel.schedules)["cpu"]] <= SLOWEST * min(models.values())


def tasks_named(stage: Stage, spec: Spec, schedule: Schedule, tokens: int) -> int:
    """Tasks of a launch for one head, as its template for CPUs names them, less those for parts of long lists."""
    sizes = IntSizes.square(spec, tokens)
    if not isinstance(stage, GradKVStage):
        return math.ceil(int(sizes.nodes(level_of(stage), "q")) / schedule.rows)
    is_merge = stage.kind == "merge_grad_kv"
    if stage.part == "all":
        return math.ceil(int(sizes.nodes(stage.level, "k")) / schedule.keys) * (1 if is_merge else query_splits(spec))
    lists = sizes.parts(stage.level + 1) if is_merge else sizes.nodes(stage.level + 1, "k")
    return int(lists) * (spec.block // schedule.keys)


def level_of(stage: Stage) -> int:
    """The level whose nodes a launch goes through."""
    return stage.level if isinstance(stage, GradKVStage | Select) else 0


@given(spec=specs(max_levels=3), tokens=st.integers(1, 2**20))
@budget(25)
def test_tasks_are_those_that_templates_name_for_the_finest_launch(spec: Spec, tokens: int) -> None:
    package = render(spec)
    stages = [(plan, stage) for plan in package.plans_for("cpu") for stage in plan.stages if stage.kind in TASK_KINDS]
    finest = {package.kernel_of(*one): one[1] for one in sorted(stages, key=lambda one: -level_of(one[1]))}
    assert {kernel.key.kind for kernel in finest} == {one.key.kind for one in package.kernels_for("cpu")} & set(
        TASK_KINDS
    )
    for kernel, stage in finest.items():
        schedule = dict(kernel.schedules)["cpu"]
        assert tasks_of(kernel, spec, schedule, tokens) == tasks_named(stage, spec, schedule, tokens), kernel.name
