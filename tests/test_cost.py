# SPDX-License-Identifier: Apache-2.0
"""The cost model: equal to counting, the same in symbols and in numbers, and growing as derived."""

from __future__ import annotations

import json
import math

import pytest
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from llsa_gen.cost import cost, growth, measure, plan_report
from llsa_gen.cost.model import live_temporaries
from llsa_gen.ir.interpret import interpret
from llsa_gen.lowering import choose_depth, lower, trace
from llsa_gen.spec import ENRICHMENTS, Spec
from tests.strategies import budget

SPECS = st.builds(
    Spec,
    levels=st.integers(1, 4),
    block=st.sampled_from([4, 8]),
    topk=st.sampled_from([1, 2, 3, 5, 40, "1 + l", "9 - 2 * l"]),
    head_dim=st.just(16),
    value_dim=st.sampled_from([16, 24]),
    enrichment=st.sampled_from(ENRICHMENTS),
    dtype=st.sampled_from(["fp32", "bf16"]),
)


def keys_of(query: int, lists: dict[int, list[list[int]]], length: int, spec: Spec) -> list[tuple[int, int]]:
    """The (level, node) that a query attends, counted one by one from the definition."""
    found = [(spec.depth, node) for node in range(-(-length // spec.block**spec.depth))]
    for level in range(spec.depth - 1, -1, -1):
        parents = lists[level + 1][query // spec.block ** (level + 1)]
        children = [parent * spec.block + child for parent in parents if parent >= 0 for child in range(spec.block)]
        found += [(level, node) for node in children if node * spec.block**level < length]
    if spec.enrichment == "none":
        return [(level, node) for level, node in found if level == 0]
    if spec.enrichment == "overlap":
        return found
    own = {level: rows[query // spec.block**level] for level, rows in lists.items()}
    return [(level, node) for level, node in found if level == 0 or node not in own[level]]


def lists_of(spec: Spec, tokens: Tensor) -> dict[int, list[list[int]]]:
    wide = tokens.expand(1, 1, -1, 16)
    result = interpret(lower(spec), torch.ones_like(wide), wide, wide.repeat(1, 1, 1, 2)[..., : spec.dim_v])
    return {level: result[f"idx{level}"][0, 0].tolist() for level in range(1, spec.depth + 1)}


# -- against counting -----------------------------------------------------------------------------


@budget(40)
@given(SPECS, st.integers(1, 300))
def test_keys_per_query_equal_counting_where_the_last_node_is_not_wanted(spec: Spec, length: int) -> None:
    tokens = torch.ones(length, 1)
    tokens[(length - 1) // spec.block**spec.depth * spec.block**spec.depth :] = -1.0
    lists = lists_of(spec, tokens)
    counted = {len(keys_of(query, lists, length, spec)) for query in range(length)}
    assert counted == {measure(lower(spec), length).keys_per_query}


@budget(30)
@given(SPECS, st.integers(1, 300), st.integers(0, 10**6))
def test_no_query_attends_more_and_few_attend_less(spec: Spec, length: int, seed: int) -> None:
    lists = lists_of(spec, torch.rand(length, 1, generator=torch.Generator().manual_seed(seed)))
    counted = [len(keys_of(query, lists, length, spec)) for query in range(0, length, 3)]
    if spec.enrichment != "exclude_refined":
        assert max(counted) <= measure(lower(spec), length).keys_per_query
    if length % spec.block**spec.depth == 0:
        assert set(counted) == {measure(lower(spec), length).keys_per_query}


@pytest.mark.parametrize(
    ("length", "levels", "keys"),
    [(16384, 2, 320), (65536, 1, 4224), (65536, 2, 512), (65536, 3, 400), (262144, 2, 1280), (262144, 3, 448)],
)
def test_known_keys_per_query(length: int, levels: int, keys: int) -> None:
    plan = lower(Spec(levels=levels))
    assert measure(plan, length).keys_per_query == keys
    assert cost(plan).at(N=length).keys_per_query == keys
    assert measure(plan, length).flops_of("attend") == 4 * length * keys * 64


# -- symbols and numbers --------------------------------------------------------------------------


@budget(15)
@given(SPECS, st.integers(1, 10**6), st.integers(1, 3), st.integers(1, 5))
def test_symbols_give_the_same_numbers(spec: Spec, length: int, batch: int, heads: int) -> None:
    plan = lower(spec)
    assert cost(plan).at(N=length, B=batch, H=heads) == measure(plan, length, batch, heads)


@budget(25)
@given(SPECS, st.integers(1, 10**6))
def test_lowering_changes_traffic_but_neither_keys_nor_products(spec: Spec, length: int) -> None:
    costs = [measure(plan, length, 2, 3) for _, plan in trace(spec)]
    assert len({(item.keys_per_query, item.dense_flops) for item in costs}) == 1
    for kind in ("select", "attend"):
        assert len({item.flops_of(kind) for item in costs}) == 1
    read_build, read_fused = (sum(s.bytes_read for s in item.stages if s.kind == "coarsen") for item in costs[:2])
    assert read_fused <= read_build


def test_symbols_are_the_ones_of_the_field() -> None:
    shown = cost(lower(Spec(levels=3)))
    assert str(shown.dense_flops) == "4*B*D*H*N**2"
    assert {str(symbol) for symbol in shown.flops.free_symbols} == {"B", "D", "H", "K", "N", "b"}
    differing = cost(lower(Spec(levels=2, topk=(8, 4), value_dim=80)))
    assert {str(s) for s in differing.flops.free_symbols} == {"B", "D", "Dv", "H", "K_1", "K_2", "N", "b"}
    length, block = symbols("N", "b")
    assert cost(lower(Spec(levels=1))).keys_per_query.has(sympy.ceiling(length / block))


# -- stages by hand -------------------------------------------------------------------------------


def test_every_stage_by_hand() -> None:
    spec = Spec(levels=2, block=4, topk=2, head_dim=16, value_dim=24, dtype="bf16")
    rows = {stage.name: stage for stage in measure(lower(spec), 50, 3, 5).stages}
    heads, carry = 15, 50 * (24 * 4 + 4)
    assert rows["coarsen_q"].flops == heads * 16 * (50 + 13 + 13 + 4)
    assert rows["coarsen_v"].bytes_read == heads * 24 * 2 * 50
    assert rows["coarsen_v"].bytes_written == heads * 24 * 2 * (13 + 4)
    assert rows["select_2"].flops == heads * 2 * 16 * 4 * 4
    assert rows["select_1"].flops == heads * 2 * 16 * 13 * 8
    assert rows["select_1"].bytes_read == heads * (2 * 13 * 16 * 2 + 4 * 2 * 4)
    assert rows["select_1"].bytes_written == heads * 13 * 2 * 4
    assert rows["attend_coarse"].flops == heads * 2 * 50 * (4 + 8) * (16 + 24)
    assert rows["attend_fine"].flops == heads * 2 * 50 * 8 * (16 + 24)
    assert rows["attend_coarse"].bytes_written == heads * carry
    assert rows["attend_fine"].bytes_read == heads * (50 * (16 + 16 + 24) * 2 + 13 * 2 * 4 + carry)


def test_saved_memory_and_workspace_by_hand() -> None:
    spec = Spec(levels=2, block=4, topk=2, head_dim=16, dtype="bf16")
    found = measure(lower(spec), 64, 1, 2)
    tokens, pool, lists = 64 * 16 * 2, (16 + 4) * 16 * 2, (16 * 2 + 4 * 2) * 4
    carry = 64 * (16 * 4 + 4)
    assert found.saved_memory == 2 * (4 * tokens + 64 * 4)
    # The peak is the coarse attention: pooled keys and values, both lists, the carry; pooled queries are gone.
    assert found.workspace == 2 * (2 * pool + lists + carry)


def test_temporaries_live_from_their_producer_to_their_last_reader() -> None:
    plan = lower(Spec(levels=3))
    alive = {stage.name: [t.name for t in now] for stage, now in zip(plan.stages, live_temporaries(plan), strict=True)}
    assert alive["coarsen_q"] == ["q_sums_2", "q_pools"]
    assert alive["coarsen_k"] == ["k_sums_2", "q_pools", "k_pools"]
    assert alive["select_1"] == ["q_pools", "k_pools", "v_pools", "idx3", "idx2", "idx1"]
    assert alive["attend_fine"] == ["idx1", "o_carry", "lse_carry"]


# -- growth ---------------------------------------------------------------------------------------


def symbols(*names: str) -> list[sympy.Symbol]:
    return [sympy.Symbol(name, positive=True, integer=True) for name in names]


@pytest.mark.parametrize("enrichment", ["overlap", "exclude_refined"])
def test_a_growing_depth_costs_n_log_n(enrichment: str) -> None:
    found = growth(Spec(levels=3, value_dim=80, enrichment=enrichment))
    b, K, D, Dv = symbols("b", "K", "D", "Dv")
    assert found.order == "N log N"
    assert sympy.simplify(found.per_n_log_n - 2 * K * b * (D + Dv) / sympy.log(b)) == 0
    assert found.value(found.per_n_log_n) == pytest.approx(2 * 8 * 16 * 144 / math.log(16))
    assert found.per_n == sympy.oo


@pytest.mark.parametrize("levels", [1, 2, 3, 6])
def test_a_fixed_depth_is_quadratic_over_the_coarsest_block(levels: int) -> None:
    found = growth(Spec(levels=levels, value_dim=80))
    b, D, Dv = symbols("b", "D", "Dv")
    assert found.fixed_order == f"N**2 / b**{levels}"
    expected = 2 * (D + Dv) / b**levels + 2 * D / b ** (2 * levels)
    assert sympy.simplify(found.per_n_squared - expected) == 0
    assert sympy.simplify(found.dense_per_n_squared - 2 * (D + Dv)) == 0


def test_without_enrichment_attention_is_linear_and_only_selection_is_quadratic() -> None:
    found = growth(Spec(levels=2, enrichment="none"))
    b, D = symbols("b", "D")
    assert (found.order, found.fixed_order) == ("N", "N**2 / b**4")
    assert found.per_n_log_n == 0
    assert sympy.simplify(found.per_n_squared - 2 * D / b**4) == 0


@pytest.mark.parametrize("enrichment", ENRICHMENTS)
@pytest.mark.parametrize("levels", [1, 2, 4])
def test_the_envelope_meets_the_model_where_its_depth_is_whole(levels: int, enrichment: str) -> None:
    spec = Spec(levels=levels, enrichment=enrichment)
    found = growth(spec)
    length = 8 * 16 ** (levels + 1)
    values = {**dict(found.known), **dict(zip(symbols("N"), [length], strict=True))}
    exact = measure(lower(spec), length)
    assert float(found.depth_envelope.subs(values)) == pytest.approx(levels)
    assert float(found.cost_envelope.subs(values)) == pytest.approx(exact.flops_of("select") + exact.flops_of("attend"))
    assert float(found.fixed_cost.subs(values)) == pytest.approx(exact.flops_of("select") + exact.flops_of("attend"))


def test_short_lists_bound_the_smooth_model() -> None:
    spec = Spec(levels=2, block=4, topk=(128, 1))
    exact = measure(lower(spec), 4**9)
    found = growth(spec)
    values = {**dict(found.known), **dict(zip(symbols("N"), [4**9], strict=True))}
    assert float(found.fixed_cost.subs(values)) == exact.flops_of("select") + exact.flops_of("attend")


def test_the_cost_at_the_chosen_depth_stays_near_the_envelope() -> None:
    found = growth(Spec())
    for exponent in range(14, 27):
        length = 2**exponent
        values = {**dict(found.known), **dict(zip(symbols("N"), [length], strict=True))}
        choice = choose_depth(Spec(), length)
        best = next(row.total for row in choice.rows if row.levels == choice.levels)
        assert 0.75 < best / float(found.cost_envelope.subs(values)) < 1.25


# -- report ---------------------------------------------------------------------------------------


@budget(5)
@given(SPECS, st.integers(1, 10**6))
def test_the_report_is_plain_data(spec: Spec, length: int) -> None:
    report = plan_report(spec, length, 1, 6)
    assert json.loads(json.dumps(report)) == report
    exact = measure(lower(spec), length, 1, 6)
    assert report["totals"]["flops"]["value"] == exact.flops
    assert [stage["name"] for stage in report["stages"]] == [stage.name for stage in exact.stages]
    assert (report["backward"] is not None) == spec.gradient


def test_the_report_of_an_open_depth_says_what_was_chosen() -> None:
    report = plan_report(Spec(levels="auto", seq_len=262144), 16384)
    assert report["levels"]["chosen"] == 3
    assert report["levels"]["auto"]
    assert report["levels"]["best"] == 2
    assert report["growth"]["envelope"]["limit"]["formula"] == "4*D*K*b/log(b)"


def test_the_report_says_in_how_many_launches_lists_are_inverted() -> None:
    kernels = []
    for length, inverting in ((1024, ["invert_index_2", "invert_index_1"]), (65536, ["invert_index_2", *LONG_1])):
        backward = plan_report(Spec(), length)["backward"]
        assert [stage["name"] for stage in backward["stages"] if stage["kind"] == "invert_index"] == inverting
        assert ("counts1" in {tensor["name"] for tensor in backward["tensors"]}) == (length > 1024)
        kernels.append({kernel["kernel"]: kernel["stages"] for kernel in backward["kernels"]})
    assert kernels[0].keys() == kernels[1].keys()
    assert kernels[0]["invert_index_phase_scan"] == [] and kernels[1]["invert_index_phase_scan"] == [LONG_1[1]]


LONG_1 = ["count_entries_1", "scan_entries_1", "scatter_entries_1"]
"""The stages that invert long lists of level 1."""
