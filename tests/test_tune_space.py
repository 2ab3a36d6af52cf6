# SPDX-License-Identifier: Apache-2.0
"""What the tuner tries: the schedules of every kernel, the check that none of them is wrong, and the model."""

from __future__ import annotations

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llsa_gen.codegen import KernelInstance, render
from llsa_gen.evidence.passes import passes
from llsa_gen.evidence.tune import places_of
from llsa_gen.ir import names
from llsa_gen.ir.sizes import part_entries
from llsa_gen.jit import Machine
from llsa_gen.jit.isa import ISAS, vectors_of
from llsa_gen.schedule import Schedule, fits, solve, space
from llsa_gen.spec import Spec
from llsa_gen.tuning.oracle import Idle, Oracle
from llsa_gen.tuning.prune import choices, held_bytes, idle, model_of, shares_of
from llsa_gen.workloads import clustered_qkv
from tests.kernels.calls import FORMS, inverted_in
from tests.schedules import CPU, kernel_named, loaded
from tests.strategies import budget, specs

DEEP = Spec(levels=2, block=16, topk=(3, 2), head_dim=16, dtype="fp32")


@given(specs())
@budget(40)
def test_the_space_of_every_kernel_holds_the_default_and_no_kernel_twice(spec: Spec) -> None:
    for kernel in render(spec).kernels:
        offered = list(space(kernel.key, spec, CPU))
        assert solve(kernel.key, spec, CPU) in offered
        assert all(fits(kernel.key, spec, CPU, each) for each in offered)
        built = {str(kernel.with_schedule("cpu", each).arguments("cpu")) for each in offered}
        assert len(built) == len(offered)


@given(st.data())
@budget(12)
def test_every_schedule_of_the_space_is_right(data: st.DataObject) -> None:
    kernel = data.draw(st.sampled_from(render(DEEP).kernels))
    schedule = data.draw(st.sampled_from(list(space(kernel.key, DEEP, CPU))))
    assert oracle_of(DEEP).wrong(loaded(DEEP, kernel, schedule)) == ""


@cache
def oracle_of(spec: Spec) -> Oracle:
    return Oracle(spec, "cpu", "cpu")


def with_a_choice(spec: Spec) -> list[KernelInstance]:
    """The kernels of a spec that have more than one schedule."""
    return [kernel for kernel in render(spec).kernels if len(set(space(kernel.key, spec, CPU))) > 1]


@pytest.mark.parametrize("kernel", with_a_choice(DEEP), ids=lambda kernel: kernel.name)
def test_every_kernel_that_is_tuned_has_work_in_the_check_and_is_missed_where_it_does_none(
    kernel: KernelInstance,
) -> None:
    made = loaded(DEEP, kernel, solve(kernel.key, DEEP, CPU))
    assert oracle_of(DEEP).wrong(made) == ""
    assert oracle_of(DEEP).wrong(Idle(made)) != "" and oracle_of(DEEP).sees(made)


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
        assert set(places_of(both)) == set(shares_of(render(DEEP), 300, 1))


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


@pytest.mark.parametrize("isa", ISAS)
def test_the_model_never_beats_one_multiply_add_per_step_and_lanes_out_of_use_cost(isa: str) -> None:
    vectors = vectors_of(isa)
    kernel = kernel_named(DEEP, "attend_coarse")
    times = {lanes: model_of(kernel, DEEP, Schedule(lanes, 256), vectors) for lanes in (4, 8, 16, 32, 64)}
    assert all(time >= 1 for time in times.values())
    assert all(times[lanes] >= vectors.width / lanes for lanes in times)
