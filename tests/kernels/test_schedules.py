# SPDX-License-Identifier: Apache-2.0
"""Schedules change speed and nothing else, and what does not fit a machine is refused with the limit that binds."""

from dataclasses import replace
from pathlib import Path

import pytest

from llsa_gen.catalog import catalogue_specs
from llsa_gen.codegen import render
from llsa_gen.errors import InfeasibleError
from llsa_gen.ir.types import KernelKey
from llsa_gen.jit.lower import lower_kernel
from llsa_gen.lowering import lower
from llsa_gen.reference import assert_same_selection
from llsa_gen.schedule import Schedule, solve, space
from llsa_gen.schedule.solve import tiling_of
from llsa_gen.spec import Spec
from llsa_gen.targets import Target, get_target, list_targets
from llsa_gen.workloads import clustered_qkv
from tests.kernels import mutants, test_grad_kv, test_grad_q
from tests.kernels.calls import assert_right, run_attention, run_select
from tests.kernels.laws import BASE

WIDE = Spec(levels=2, block=32, topk=(3, 2), head_dim=16, dtype="fp32")
"""Its blocks are wider than the narrowest key tile, and its coarse tiles may hold 16 to 128 queries."""
ABSURD = Spec(levels=2, block=128, topk=128, head_dim=256, dtype="fp32")
CUDA = tuple(target for target in list_targets() if target.is_cuda)
LIMITS = ("shared memory per block (bytes)", "registers per thread held by fragments, operands and addresses")
LARGEST, SMALLEST = -1, 0

pytestmark = pytest.mark.usefixtures("emulated")


def tilings(kernel: KernelKey, spec: Spec) -> list[tuple[int, int]]:
    """All (rows, keys) that a GPU or its emulation may choose, small to large."""
    targets = [target for target in list_targets() if target.kind != "cpu"]
    return sorted({(each.rows, each.keys) for target in targets for each in space(kernel, spec, target)})


@pytest.mark.parametrize("place", [SMALLEST, LARGEST], ids=("smallest", "largest"))
def test_any_tiling_gives_the_same_results(place: int, scratch_kernels: Path, full: bool) -> None:
    def chosen(kernel: KernelKey, spec: Spec, target: Target) -> Schedule:
        if target.kind != "c" or kernel.kind == "coarsen":
            return solve(kernel, spec, target)
        rows, keys = tilings(kernel, spec)[place]
        return Schedule(rows, keys, threads=1)

    with mutants.generated_anew(scratch_kernels) as patch:
        patch.setattr(mutants.render, "solve", chosen)
        kernels = {kernel.name: kernel.arguments("c") for kernel in render(WIDE).kernels_for("c")}
        for length in (1, 33, 1500):
            q, k, v = clustered_qkv(WIDE, 1, 2, length)
            idx = run_select(WIDE, q, k)
            assert_same_selection(idx, q, k, WIDE)
            assert_right(WIDE, (q, k, v), idx, run_attention(WIDE, q, k, v))
            for gradients in (test_grad_q, test_grad_kv) if full else ():
                gradients.judge(WIDE, (q, k, v), idx)
    assert kernels["attend_coarse"]["keys"] == (16 if place == SMALLEST else 128)


@pytest.mark.parametrize("target", list_targets(), ids=lambda target: target.name)
@pytest.mark.parametrize("spec", catalogue_specs().values(), ids=lambda spec: spec.slug)
def test_the_solved_schedule_is_in_the_space_and_fits(spec: Spec, target: Target) -> None:
    for kernel in render(spec).plan(target).kernels():
        schedule = solve(kernel, spec, target)
        assert schedule in set(space(kernel, spec, target))
        if target.is_cuda:
            assert tiling_of(kernel, spec).shared_bytes(schedule) <= target.shared_per_block
            assert tiling_of(kernel, spec).fragment_cells(schedule) / schedule.threads < target.registers_per_thread
            assert schedule.threads <= target.threads_per_block and schedule.threads % target.warp == 0


@pytest.mark.parametrize("target", CUDA, ids=lambda target: target.name)
def test_what_does_not_fit_names_the_limit(target: Target) -> None:
    refused = 0
    for kernel in lower(ABSURD).kernels():
        try:
            solve(kernel, ABSURD, target)
        except InfeasibleError as error:
            refused += 1
            assert error.limit in LIMITS
            assert isinstance(error.value, int | float) and isinstance(error.bound, int | float)
            assert error.value > error.bound > 0
            assert error.limit in str(error) and target.name in str(error)
    assert refused
    with pytest.raises(InfeasibleError):
        render(ABSURD).require_feasible(target.name)
    assert "cpu" not in render(ABSURD).infeasible


def test_a_larger_tile_never_takes_less_memory() -> None:
    for spec in (*catalogue_specs().values(), BASE):
        for kernel in lower(spec).kernels():
            found = sorted(space(kernel, spec, get_target("sm90")))
            for small in found:
                for large in found:
                    if small.rows <= large.rows and small.keys <= large.keys and small.stages <= large.stages:
                        less, more = (tiling_of(kernel, spec).shared_bytes(each) for each in (small, large))
                        assert kernel.kind == "coarsen" or less <= more


def test_the_memory_estimate_is_never_below_what_is_allocated(
    architectures: tuple[str, ...], full: bool, tmp_path: Path
) -> None:
    everything = (*catalogue_specs().values(), BASE, WIDE)
    for spec in everything if full else (replace(BASE, dtype="bf16"),):
        package = render(spec)
        for name in architectures:
            for kernel in package.kernels_for(name):
                path = tmp_path / f"{kernel.factory}.py"
                path.write_text(package.files[path.name], encoding="utf-8")
                schedule = dict(kernel.schedules)[name]
                exact = spec.dtype == "fp32"
                made = lower_kernel(path, kernel.factory, kernel.arguments(name), get_target(name), exact=exact)
                estimate = tiling_of(kernel.key, spec).shared_bytes(schedule)
                assert made.shared_bytes <= estimate, f"{spec.slug} {kernel.name} {name}: {schedule}"
                assert made.shared_bytes > 0 or estimate == 0 or kernel.key.kind == "coarsen"
