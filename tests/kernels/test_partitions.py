# SPDX-License-Identifier: Apache-2.0
"""The warps of a block can divide every product that a schedule asks for, as TileLang itself says."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import tilelang.language as T
from hypothesis import given
from hypothesis import strategies as st
from tilelang import tvm

from llsa_gen.codegen import render
from llsa_gen.ir.types import KernelKey
from llsa_gen.jit.lower import lower_kernel
from llsa_gen.lowering import lower
from llsa_gen.schedule import Schedule, fits, solve, space
from llsa_gen.schedule.limits import share, warps_across
from llsa_gen.schedule.solve import tiling_of
from llsa_gen.spec import Spec
from llsa_gen.targets import Target, get_target, list_targets
from tests.strategies import budget

CUDA = tuple(target for target in list_targets() if target.is_cuda)
POLICIES = (T.GemmWarpPolicy.FullRow, T.GemmWarpPolicy.FullCol)
WIDTHS = tuple(range(16, 257, 8))
MULTIPLIES = ("select", "attend", "attend_grad_q", "attend_grad_kv")
SMALL = Spec(levels=1, block=4, topk=1, head_dim=16, dtype="bf16")
ODD = (
    SMALL,
    Spec(levels=1, block=16, topk=3, head_dim=48, value_dim=16, dtype="bf16"),
    Spec(levels=2, block=8, topk=(5, 1), head_dim=24, value_dim=72, dtype="fp16", enrichment="exclude_refined"),
    Spec(levels=1, block=128, topk=2, head_dim=256, value_dim=80, dtype="bf16"),
)
"""Products narrower than four warps, widths that no four warps divide, and accumulators too large for whole blocks."""


@cache
def divided(rows: int, columns: int, threads: int, target: str, grouped: bool) -> bool:
    """Whether TileLang divides a product among the warps of a block, under every policy that kernels name."""
    machine = tvm.target.Target({"kind": "cuda", "arch": get_target(target).arch})
    for policy in POLICIES:
        made = tvm.ir.make_node("tl.GemmWarpPolicy", policy_type=int(policy), m_warp=0, n_warp=0)
        try:
            made.compute_warp_partition(rows, columns, threads, machine, "cuda.wgmma" if grouped else "cuda.mma")
        except Exception:  # noqa: BLE001  (TVM has error types of its own without a common base)
            return False
    return True


def kernels(spec: Spec) -> Iterator[KernelKey]:
    """The kernels of both directions that multiply."""
    keys = [key for direction in ("forward", "backward") for key in lower(spec, direction).kernels()]
    yield from (key for key in dict.fromkeys(keys) if key.kind in MULTIPLIES)


@st.composite
def halves(draw: st.DrawFn) -> Spec:
    """Specs of half precision of every width."""
    return Spec(
        levels=draw(st.integers(1, 3)),
        block=draw(st.sampled_from((4, 8, 16, 32, 64, 128))),
        topk=draw(st.integers(1, 40)),
        head_dim=draw(st.sampled_from(WIDTHS)),
        value_dim=draw(st.sampled_from(WIDTHS)),
        dtype=draw(st.sampled_from(("bf16", "fp16"))),
        enrichment=draw(st.sampled_from(("overlap", "exclude_refined", "none"))),
    )


@pytest.mark.parametrize("grouped", [False, True], ids=("warps", "warp_groups"))
def test_the_rule_of_shares_is_tilelangs(grouped: bool) -> None:
    for rows in range(64, 193, 64) if grouped else (16, 32, 48, 64, 128):
        for columns in WIDTHS:
            for threads in (128, 256) if grouped else (32, 64, 128, 256):
                ours = share(rows, columns, threads // 32, grouped=grouped)
                assert bool(ours) == divided(rows, columns, threads, "sm90", grouped), (rows, columns, threads)


def across(rows: int, columns: int, threads: int, target: Target) -> int:
    """How many warps TileLang puts side by side where it divides by columns."""
    machine = tvm.target.Target({"kind": "cuda", "arch": target.arch})
    policy = tvm.ir.make_node("tl.GemmWarpPolicy", policy_type=int(T.GemmWarpPolicy.FullCol), m_warp=0, n_warp=0)
    return int(policy.compute_warp_partition(rows, columns, threads, machine, "cuda.mma")[1])


def test_the_warps_side_by_side_are_tilelangs() -> None:
    for rows, columns, threads in product((16, 32, 64, 128), WIDTHS, (32, 64, 128, 256)):
        ours = warps_across(rows, columns, threads // 32, grouped=False)
        if ours:
            assert ours == across(rows, columns, threads, get_target("sm80")), (rows, columns, threads)


def test_no_warp_sums_up_rows_whose_logits_lie_elsewhere() -> None:
    """TileLang refuses to lay out what each of four warps needs of rows that two of them hold."""
    spec, target, refused = ODD[-1], get_target("sm80"), Schedule(rows=32, keys=16, threads=128, stages=2)
    for kernel in (key for key in kernels(spec) if key.kind == "attend_grad_q"):
        logits, sums = tiling_of(kernel, spec).products(refused)
        assert across(*logits, 128, target) < across(*sums, 128, target)
        offered = [schedule for schedule in space(kernel, spec, target) if fits(kernel, spec, target, schedule)]
        assert offered and refused not in offered


@given(spec=halves(), target=st.sampled_from(CUDA))
@budget(60)
def test_every_schedule_can_be_divided_and_attention_always_fits(spec: Spec, target: Target) -> None:
    for kernel in kernels(spec):
        tiling, offered = tiling_of(kernel, spec), list(space(kernel, spec, target))
        for schedule in offered:
            grouped = tiling.grouped(schedule, target)
            assert grouped == (target.name == "sm90" and tile_rows(kernel, schedule) >= 64)
            assert tiling.products(schedule)
            for rows, columns in tiling.products(schedule):
                assert divided(rows, columns, schedule.threads, target.name, grouped), (kernel, schedule)
        fitting = any(fits(kernel, spec, target, schedule) for schedule in offered)
        assert fitting or kernel.kind == "select", kernel  # whose lists may be too long


def tile_rows(kernel: KernelKey, schedule: Schedule) -> int:
    """Rows of the tile that stays while others pass by."""
    return max(16, schedule.keys if kernel.kind == "attend_grad_kv" else schedule.rows)


def test_what_cannot_be_divided_is_not_offered_and_does_not_fit() -> None:
    target = get_target("sm90")
    fine = next(key for key in kernels(SMALL) if key.label == "attend_part_fine")
    solved = solve(fine, SMALL, target)
    assert solved.threads == 64
    undivided = replace(solved, threads=128)
    assert undivided not in set(space(fine, SMALL, target)) and not fits(fine, SMALL, target, undivided)


def test_odd_shapes_lower(architectures: tuple[str, ...], full: bool, tmp_path: Path) -> None:
    for spec in ODD if full else ODD[:1]:
        package = render(spec)
        for name in architectures:
            chosen = [each for each in package.kernels_for(name) if each.key.kind in MULTIPLIES]
            for kernel in chosen if full else [each for each in chosen if "fine" in each.name]:
                path = tmp_path / f"{kernel.factory}.py"
                path.write_text(package.files[path.name], encoding="utf-8")
                made = lower_kernel(path, kernel.factory, kernel.arguments(name), get_target(name), exact=False)
                estimate = tiling_of(kernel.key, spec).shared_bytes(dict(kernel.schedules)[name])
                assert 0 < made.shared_bytes <= estimate, f"{spec.slug} {kernel.name} {name}"
