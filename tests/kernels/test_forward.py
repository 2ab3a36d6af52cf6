# SPDX-License-Identifier: Apache-2.0
"""The public functions with generated kernels: equal to the reference by the error rule, and true to the laws.

A fixed set of specs covers the fields pairwise, so that an ordinary run compiles few kernels; the deep run also draws
specs. With `--device cuda` the same properties hold for the kernels of the GPU; the reference stays on the CPU.
"""

import math
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llsa_gen import llsa_attend, llsa_attention, llsa_select, reference
from llsa_gen.catalog import catalogue_specs
from llsa_gen.ir.interpret import interpret
from llsa_gen.lowering import lower
from llsa_gen.paths import CACHE_VARIABLE
from llsa_gen.reference import node_count
from llsa_gen.spec import Spec
from llsa_gen.workloads import FINITE_CASES, Qkv, adversarial_qkv, clustered_qkv, random_qkv
from tests.kernels.calls import (
    assert_identical,
    assert_right,
    assert_selected,
    home,
    placed,
    run_attend,
    run_attention,
    run_select,
)
from tests.kernels.laws import BASE, LAWS, Law, assert_dense
from tests.kernels.layouts import LAYOUTS, Layout
from tests.strategies import (
    Problem,
    budget,
    finite_problems,
    given_lists,
    lengths,
    nonfinite_problems,
    problems,
    specs,
)

ALL_REFINED = Spec(levels=2, block=4, topk=(64, 16), head_dim=16, dtype="fp32", enrichment="exclude_refined")
ALL_TOKENS = Spec(levels=1, block=128, topk=8, head_dim=16, dtype="fp32", enrichment="none")
"""Two specs that select everything up to 256 and 1024 tokens."""

_CATALOGUE = {spec.slug: spec for spec in catalogue_specs().values()}
SPECS = {
    spec.slug: spec
    for spec in (
        _CATALOGUE["llsa_l2_b16_k8_d64_bf16"],
        _CATALOGUE["llsa_l1_b32_k5_d48v80_bf16"],
        next(spec for spec in _CATALOGUE.values() if spec.depth == 4),
        BASE,
        Spec(levels=3, block=8, topk=(20, 3, 2), head_dim=24, value_dim=16, dtype="fp16", weight="1"),
        Spec(levels=2, block=64, topk=(1, 12), head_dim=128, value_dim=32, dtype="fp32", weight="b**l"),
        ALL_REFINED,
        ALL_TOKENS,
    )
}
EACH_SPEC = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
ANY_SPEC = st.sampled_from(list(SPECS.values()))
EXACT_SPEC = st.sampled_from([spec for spec in SPECS.values() if spec.dtype == "fp32"])


def judge(problem: Problem, device: torch.device) -> None:
    """Selection, attention with its lists, and both in one call are right, and the last two are the same."""
    spec = problem.spec
    q, k, v = placed(problem.qkv(None), device)
    idx = run_select(spec, q, k)
    assert_selected(spec, q, k, idx)
    result = run_attention(spec, q, k, v)
    left_out = spec.enrichment == "exclude_refined" or spec.dtype != "fp32"
    assert_right(spec, (q, k, v), idx, result, inf_or_nan=left_out and problem.inputs.endswith("inf_value"))
    assert_identical(run_attend(spec, q, k, v, idx), result)


# -- the reference --------------------------------------------------------------------------------


@EACH_SPEC
@given(data=st.data())
@budget(8)
def test_kernels_equal_the_reference(spec: Spec, data: st.DataObject, device: torch.device) -> None:
    judge(data.draw(finite_problems(spec=st.just(spec), high=600)), device)


@EACH_SPEC
@given(data=st.data())
@budget(1)
def test_long_ragged_sequences(spec: Spec, data: st.DataObject, device: torch.device) -> None:
    judge(data.draw(problems(spec=st.just(spec), low=2000, high=4000, max_batch=1)), device)


@given(data=st.data())
@budget(4)
def test_kernels_of_drawn_specs(data: st.DataObject, device: torch.device, full: bool, scratch_kernels: Path) -> None:
    """Any spec; the ordinary run, which has no time to compile, draws from the fixed ones."""
    drawn = specs(blocks=(4, 8, 16, 32, 64, 128), head_dims=(16, 40, 72, 128), value_dims=(16, 24, 96))
    problem = data.draw(finite_problems(spec=drawn if full else ANY_SPEC, high=1500))
    with pytest.MonkeyPatch.context() as patch:
        if full:
            patch.setenv(CACHE_VARIABLE, str(scratch_kernels))
        judge(problem, device)


@given(st.data())
@budget(40)
def test_given_lists_are_attended_as_they_are(device: torch.device, data: st.DataObject) -> None:
    problem = data.draw(problems(spec=ANY_SPEC, high=300))
    idx = tuple(entries.to(device) for entries in data.draw(given_lists(problem)))
    q, k, v = placed(problem.qkv(None), device)
    assert_right(problem.spec, (q, k, v), idx, run_attend(problem.spec, q, k, v, idx))


@given(problems(spec=ANY_SPEC, high=300), st.floats(0.01, 8.0))
@budget(20)
def test_any_scale(device: torch.device, problem: Problem, scale: float) -> None:
    q, k, v = placed(problem.qkv(None), device)
    idx = run_select(problem.spec, q, k)
    assert_right(problem.spec, (q, k, v), idx, run_attention(problem.spec, q, k, v, scale=scale), scale=scale)


@given(nonfinite_problems(spec=ANY_SPEC, high=300))
@budget(40)
def test_what_is_not_finite_spreads_as_in_the_reference(device: torch.device, problem: Problem) -> None:
    judge(problem, device)


@pytest.mark.parametrize("case", FINITE_CASES)
def test_adversarial_inputs(case: str, device: torch.device) -> None:
    for spec in SPECS.values():
        judge(Problem(spec, 1, 2, 3 * spec.block + 5, case, 1), device)


@given(problems(spec=EXACT_SPEC, high=200))
@budget(20)
def test_kernels_equal_the_interpreted_plan(device: torch.device, problem: Problem) -> None:
    spec = problem.spec
    q, k, v = placed(problem.qkv(None), device)
    idx = run_select(spec, q, k)
    fixed = {f"idx{level}": entries for level, entries in enumerate(home(idx), start=1)}
    meant = interpret(lower(spec), q.cpu(), k.cpu(), v.cpu(), given=fixed)
    o, lse = home(run_attend(spec, q, k, v, idx))
    torch.testing.assert_close(o, meant["o"], rtol=2e-5, atol=2e-5)
    torch.testing.assert_close(lse, meant["lse"], rtol=2e-5, atol=2e-5)


# -- memory ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@given(problem=problems(spec=ANY_SPEC, high=150, max_batch=3, max_heads=3))
@budget(8)
def test_strides_change_nothing(layout: Layout, problem: Problem, device: torch.device) -> None:
    qkv = placed(problem.qkv(None), device)
    moved = layout(qkv)
    assert_identical(moved, qkv)
    assert_identical(run_attention(problem.spec, *moved), run_attention(problem.spec, *qkv))
    assert_identical(run_select(problem.spec, *moved[:2]), run_select(problem.spec, *qkv[:2]))


@given(problems(spec=ANY_SPEC, high=150, max_batch=1, max_heads=1), st.integers(1, 3), st.integers(1, 3))
@budget(15)
def test_expanded_tensors(device: torch.device, problem: Problem, batch: int, heads: int) -> None:
    q, k, v = placed(problem.qkv(None), device)
    wide = (x.expand(batch, heads, -1, -1) for x in (q, k, v))
    o, lse = run_attention(problem.spec, *wide)
    one, one_lse = run_attention(problem.spec, q, k, v)
    assert_identical((o, lse), (one.expand_as(o), one_lse.expand_as(lse)))


@given(problems(spec=ANY_SPEC, high=150, max_batch=2, max_heads=3))
@budget(15)
def test_tokens_before_heads(device: torch.device, problem: Problem) -> None:
    spec = problem.spec
    qkv = placed(problem.qkv(None), device)
    q, k, v = (x.transpose(1, 2).contiguous() for x in qkv)
    fields = {"block_size": spec.block, "enrichment": spec.enrichment, "weight": spec.weight, "layout": "BNHD"}
    depth = {"topk": spec.topks, "num_levels": spec.depth}
    idx = llsa_select(q, k, block_size=spec.block, **depth, layout="BNHD")  # type: ignore[arg-type]
    assert_identical(idx, run_select(spec, *qkv[:2]))
    o, lse = run_attention(spec, *qkv)
    moved = llsa_attention(q, k, v, **fields, **depth, return_lse=True)  # type: ignore[call-overload]
    assert moved[0].is_contiguous()
    assert_identical((moved[0].transpose(1, 2), moved[1]), (o, lse))
    attended = llsa_attend(q, k, v, idx, **fields)  # type: ignore[arg-type]
    assert isinstance(attended, Tensor)
    assert_identical([attended], [moved[0]])


@EACH_SPEC
@pytest.mark.parametrize("sizes", [(1, 2, 0), (0, 2, 5), (2, 0, 5)])
def test_nothing_at_all(spec: Spec, sizes: tuple[int, int, int], device: torch.device) -> None:
    q, k, v = placed(random_qkv(spec, *sizes), device)
    o, lse = run_attention(spec, q, k, v)
    assert o.shape == (*sizes, spec.dim_v) and lse.shape == sizes
    for level, entries in enumerate(run_select(spec, q, k), start=1):
        assert entries.shape == (*sizes[:2], node_count(sizes[2], spec.block, level), spec.topks[level - 1])


# -- laws -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_law(law: Law, tmp_path: Path, device: torch.device) -> None:
    law(tmp_path, device)


@pytest.mark.parametrize(("spec", "high"), [(ALL_REFINED, 256), (ALL_TOKENS, 1024)], ids=("exclude_refined", "none"))
@given(data=st.data())
@budget(15)
def test_everything_selected_is_dense(spec: Spec, high: int, data: st.DataObject, device: torch.device) -> None:
    problem = data.draw(problems(spec=st.just(spec), high=high))
    qkv = placed(problem.qkv(None), device)
    assert_dense(qkv, run_attention(spec, *qkv))


@given(problems(spec=ANY_SPEC, high=300), st.floats(-3.0, 3.0))
@budget(20)
def test_constant_values_are_preserved(device: torch.device, problem: Problem, constant: float) -> None:
    q, k, v = placed(problem.qkv(None), device)
    o, _ = run_attention(problem.spec, q, k, torch.full_like(v, constant))
    expected = torch.full_like(o, constant)
    torch.testing.assert_close(o, expected, rtol=2.0 * torch.finfo(o.dtype).eps + 1e-5, atol=1e-6)


@given(problems(spec=ANY_SPEC, high=200, max_batch=3, max_heads=3), st.randoms(use_true_random=False))
@budget(20)
def test_heads_and_batch_permute_bitwise(device: torch.device, problem: Problem, random: Random) -> None:
    q, k, v = placed(problem.qkv(None), device)
    batch = torch.tensor(random.sample(range(problem.batch), problem.batch), device=device)[:, None]
    heads = torch.tensor(random.sample(range(problem.heads), problem.heads), device=device)[None, :]
    o, lse = run_attention(problem.spec, q, k, v)
    moved = run_attention(problem.spec, q[batch, heads], k[batch, heads], v[batch, heads])
    assert_identical(moved, (o[batch, heads], lse[batch, heads]))


@given(nonfinite_problems(spec=ANY_SPEC, high=200, max_batch=2, max_heads=2))
@budget(30)
def test_heads_and_batch_entries_are_isolated(device: torch.device, problem: Problem) -> None:
    clean = run_attention(problem.spec, *placed(replace(problem, inputs="random").qkv(None), device))
    q, k, v = placed(problem.qkv(None), device)
    result = run_attention(problem.spec, q, k, v)
    other = torch.ones(problem.batch, problem.heads, dtype=torch.bool, device=device)
    other[0, 0] = False
    assert_identical([x[other] for x in result], [x[other] for x in clean])
    for level, entries in enumerate(run_select(problem.spec, q, k), start=1):
        assert int(entries.max()) < node_count(problem.length, problem.spec.block, level)
        assert int(entries.min()) >= -1


@given(problems(spec=ANY_SPEC, high=500, max_heads=3))
@budget(15)
def test_twice_is_bitwise_the_same_on_any_number_of_threads(device: torch.device, problem: Problem) -> None:
    qkv: Qkv = placed(problem.qkv(None), device)
    first = run_attention(problem.spec, *qkv)
    assert_identical(run_attention(problem.spec, *qkv), first)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert_identical(run_attention(problem.spec, *qkv), first)
    finally:
        torch.set_num_threads(before)


@EACH_SPEC
def test_one_token_counts_once_per_level(spec: Spec, device: torch.device) -> None:
    q, k, v = placed(random_qkv(spec, 2, 2, 1), device)
    o, lse = run_attention(spec, q, k, v)
    if spec.enrichment == "overlap":
        weights = 1.0 + sum(spec.level_weight(level, 1) for level in range(1, spec.depth + 1))
    else:
        weights = 1.0
    expected = (q.double() * k.double()).sum(-1) / math.sqrt(spec.head_dim) + math.log(weights)
    torch.testing.assert_close(lse.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(o, v, rtol=2.0 * torch.finfo(o.dtype).eps, atol=1e-6)


@given(ANY_SPEC, st.data(), st.sampled_from(("constant", "negative_zero")))
@budget(20)
def test_ties_go_to_the_lowest_id(device: torch.device, spec: Spec, data: st.DataObject, case: str) -> None:
    length = data.draw(lengths(spec.block))
    q, k, _ = placed(adversarial_qkv(case, spec, 1, 1, length), device)
    expected = reference.select(q.cpu(), k.cpu(), spec)
    assert_identical(home(run_select(spec, q, k)), expected)


@given(problems(spec=EXACT_SPEC, high=200))
@budget(20)
def test_shifting_every_key_shifts_only_the_normaliser(device: torch.device, problem: Problem) -> None:
    q, k, v = placed(problem.qkv(None), device)
    idx = run_select(problem.spec, q, k)
    shift = torch.linspace(-1.0, 1.0, q.shape[-1], dtype=q.dtype, device=device)
    o, lse = run_attend(problem.spec, q, k, v, idx)
    o_moved, lse_moved = run_attend(problem.spec, q, k + shift, v, idx)
    torch.testing.assert_close(o_moved, o, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lse_moved, lse + q @ shift / math.sqrt(q.shape[-1]), rtol=1e-4, atol=1e-4)


@given(problems(spec=ANY_SPEC, high=200), st.integers(-3, 3))
@budget(15)
def test_doubling_values_doubles_the_output_bitwise(device: torch.device, problem: Problem, power: int) -> None:
    q, k, v = placed(problem.qkv(torch.float32), device)
    v = (v * 8.0).round().clamp(-64.0, 64.0)  # numbers that no format rounds, and far from its smallest
    q, k, v = (x.to(problem.spec.element.torch) for x in (q, k, v))
    o, lse = run_attention(problem.spec, q, k, v)
    scaled, same = run_attention(problem.spec, q, k, v * 2.0**power)
    assert_identical([same], [lse])
    torch.testing.assert_close(scaled.float(), o.float() * 2.0**power, rtol=1e-6, atol=1e-6)


def test_overlap_with_everything_selected_is_not_dense(device: torch.device) -> None:
    spec = replace(BASE, enrichment="overlap")
    q, k, v = placed(clustered_qkv(spec, 1, 1, 2 * spec.block), device)
    o, _ = run_attention(spec, q, k, v)
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert float((o - dense).abs().max()) > 0.01


def test_errors_do_not_grow_with_the_number_of_keys(device: torch.device) -> None:
    """Equal addends round the same way, so a sum over single keys would drift: 1,250 coarse nodes and 128 tokens."""
    spec = Spec(levels=1, head_dim=16, dtype="fp32")
    q, _, _ = random_qkv(spec, 1, 1, 20_000)
    k, v = torch.ones_like(q), torch.full_like(q, 0.1)
    o, _ = run_attention(spec, *placed((q, k, v), device))
    assert float((o.cpu() - 0.1).abs().max()) <= 8 * spec.element.unit_roundoff


@pytest.mark.parametrize("levels", [5, 6])
def test_nodes_may_span_more_tokens_than_32_bits_count(levels: int, device: torch.device) -> None:
    """A level-5 node of block 128 covers 2**35 tokens; short sequences have one such node."""
    spec = Spec(levels=levels, block=128, topk=2, head_dim=16, dtype="fp32")
    q, k, v = clustered_qkv(spec, 1, 2, 700)
    o, lse = run_attention(spec, *placed((q, k, v), device))
    expected, expected_lse, _ = reference.attention(q, k, v, spec)
    torch.testing.assert_close(o.cpu().double(), expected, rtol=0, atol=2e-5)
    torch.testing.assert_close(lse.cpu().double(), expected_lse, rtol=0, atol=2e-5)
