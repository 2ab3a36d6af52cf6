# SPDX-License-Identifier: Apache-2.0
"""The benchmark: its statistics as laws, its checks on results that are wrong, its files, and what it refuses."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llsa_gen import reference, transpose_indices
from llsa_gen.bench import Request, check, flex, request, run
from llsa_gen.bench.attention import Point, stage_works, stages_of
from llsa_gen.bench.dense import dense_of
from llsa_gen.bench.judge import Sample, examine, first, only, sample_of
from llsa_gen.bench.request import memory_of
from llsa_gen.bench.rows import FORWARD, TRAINING, Work
from llsa_gen.bench.statistics import Rates, crossover, exponents, sampled_blocks, spread_rows
from llsa_gen.bench.summary import ratios
from llsa_gen.bench.transpose import dense_transpose, mask_bytes, masked_gradient
from llsa_gen.errors import InputError, ToolMissingError
from llsa_gen.evidence.calls import attention, select, train, upward_gradients
from llsa_gen.evidence.passes import passes
from llsa_gen.jit import architecture_of
from llsa_gen.spec import Spec
from llsa_gen.stages import GradKVStage
from llsa_gen.targets import get_target
from llsa_gen.workloads import clustered_qkv
from tests.command_line import data_of, expect_error, has_all_parts, invoke
from tests.strategies import budget

SMALL = Spec(levels=1, block=4, topk=1, head_dim=16, dtype="fp32")
FLAGS = ("--levels", "1", "--block", "4", "--k", "1", "--head-dim", "16", "--no-flex", "--seconds", "0.01")

lengths = st.lists(st.integers(1, 10**7), min_size=2, max_size=8, unique=True).map(sorted)


def asked(out: Path, **changes: Any) -> Request:
    base = Request(spec=SMALL, tokens=(40, 90), heads=1, seconds=0.01, out=out, flex=False)
    return replace(base, **changes)


# -- statistics --------------------------------------------------------------------------------


@given(lengths, st.floats(-3, 3), st.floats(1e-6, 1e3))
@budget(60)
def test_a_power_of_the_length_has_its_exponent_everywhere(tokens: list[int], power: float, factor: float) -> None:
    found = exponents([(at, factor * at**power) for at in tokens])
    assert [(short, long) for short, long, _ in found] == list(pairwise(tokens))
    assert all(value == pytest.approx(power, abs=1e-6 / math.log(long / short)) for short, long, value in found)


@given(lengths, st.floats(1.2, 2.5), st.floats(0.1, 0.9))
@budget(60)
def test_the_crossover_of_two_powers_is_where_they_are_equal(tokens: list[int], power: float, place: float) -> None:
    meeting = math.exp((1 - place) * math.log(tokens[0]) + place * math.log(tokens[-1]))
    mine = [(at, float(at)) for at in tokens]
    other = [(at, meeting * (at / meeting) ** power) for at in tokens]
    found = crossover(mine, other)
    assert found.tokens == pytest.approx(meeting, rel=1e-6) or found.tokens in (tokens[0], tokens[-1])


@given(lengths, st.floats(0.01, 0.99))
@budget(40)
def test_a_curve_that_is_always_below_or_above_has_no_crossover_inside(tokens: list[int], part: float) -> None:
    high, low = [(at, float(at)) for at in tokens], [(at, part * at) for at in tokens]
    assert crossover(low, high).tokens == tokens[0]
    assert crossover(high, low).tokens is None
    assert crossover([], []).tokens is None


def test_a_relapse_counts_until_the_last_one() -> None:
    mine = [(1, 1.0), (2, 3.0), (4, 1.0)]
    found = crossover(mine, [(1, 2.0), (2, 2.0), (4, 2.0)])
    assert found.tokens is not None and 2 < found.tokens < 4


@given(st.integers(1, 10_000), st.integers(1, 5))
@budget(60)
def test_sampled_blocks_are_apart_ascending_and_hold_both_ends(count: int, width: int) -> None:
    parts = sampled_blocks(count, width)
    chosen = [block for part in parts for block in range(part.start, part.stop)]
    assert chosen == sorted(set(chosen)) and chosen[0] == 0 and chosen[-1] == count - 1
    assert len(chosen) == min(count, 3 * width)


@given(st.integers(1, 10_000), st.integers(1, 2000))
@budget(60)
def test_spread_rows_are_distinct_rows(count: int, wanted: int) -> None:
    rows = spread_rows(count, wanted)
    assert len(set(rows)) == len(rows) == min(count, wanted)
    assert all(0 <= row < count for row in rows) and list(rows) == sorted(rows)


@given(st.lists(st.tuples(st.integers(1, 10**12), st.integers(1, 10**12)), min_size=1, max_size=6))
@budget(40)
def test_a_prediction_is_additive_and_bounded_by_both_rates(stages: list[tuple[int, int]]) -> None:
    rates, work = Rates(1e11, 1e10), Work(sum(flops for flops, _ in stages), tuple(stages))
    predicted = work.predicted(rates)
    assert predicted == pytest.approx(sum(Work(one[0], (one,)).predicted(rates) or 0.0 for one in stages))
    assert predicted is not None and work.moved is not None
    assert predicted >= (1 - 1e-9) * max(work.flops / rates.matmul, work.moved / rates.copy)
    assert Work(5).predicted(rates) is None and Work(5).moved is None


def test_ratios_are_taken_where_both_were_measured() -> None:
    assert ratios([(1, 2.0), (2, 4.0)], [(2, 8.0), (4, 1.0)]) == [{"tokens": 2, "times": 2.0}]


# -- checks ------------------------------------------------------------------------------------


@given(st.integers(1, 200), st.integers(1, 3), st.data())
@budget(15)
def test_some_rows_of_the_reference_are_those_of_all(tokens: int, levels: int, data: st.DataObject) -> None:
    spec = replace(SMALL, levels=levels)
    qkv = clustered_qkv(spec, 1, 2, tokens)
    idx = reference.select(*qkv[:2], spec)
    blocks = -(-tokens // spec.block)
    start = data.draw(st.integers(0, blocks - 1))
    part = slice(start, data.draw(st.integers(start + 1, blocks)))
    whole = reference.attend(*qkv, idx, spec)
    some = reference.attend(*qkv, idx, spec, rows=part)
    rows = slice(part.start * spec.block, min(part.stop * spec.block, tokens))
    assert all(torch.allclose(mine, all_[:, :, rows]) for mine, all_ in zip(some, whole, strict=True))


@pytest.fixture(scope="module")
def sample() -> Sample:
    return sample_of(SMALL, clustered_qkv(SMALL, 1, 2, 203))


def test_right_results_pass_and_examine_says_what_was_compared() -> None:
    qkv = clustered_qkv(SMALL, 1, 2, 203)
    found = examine(SMALL, qkv, dense_of(qkv, 64))
    assert found == {"right": True, "why": [], "rows": 23, "heads": 1, "lists": True}


def test_a_wrong_entry_in_a_sampled_row_is_seen(sample: Sample) -> None:
    o, lse = attention(SMALL, *sample.qkv)
    assert not sample.judge((o, lse))
    row = int(sample.tokens[-1])
    for result in (o, lse):
        kept = result[0, 0, row].clone()
        result[0, 0, row] += 0.01
        assert sample.judge((o, lse))
        result[0, 0, row] = kept


def test_a_wrong_gradient_anywhere_is_seen(sample: Sample) -> None:
    upward = only(upward_gradients(sample.qkv[2]), sample.tokens)
    gradients = train(SMALL, sample.qkv, upward).gradients
    assert not sample.judge_gradients(gradients, upward)
    for operand in range(1, 3):
        broken = [x.clone() for x in gradients]
        broken[operand][0, 0, 101] += 1.0
        assert sample.judge_gradients(broken, upward)


def test_dense_attention_of_some_rows_is_that_of_all() -> None:
    qkv = clustered_qkv(SMALL, 1, 2, 100)
    whole, some = dense_of(qkv, 100), dense_of(qkv, 30)
    assert (whole.factor, whole.qkv[0].shape[2]) == (1.0, 100)
    assert some.factor == pytest.approx(100 / 30)
    rows = list(spread_rows(100, 30))
    assert torch.allclose(some.forward()[0], whole.forward()[0][:, :, rows], atol=1e-6)
    assert [x.shape[2] for x in some.training()()] == [30, 100, 100]


@pytest.mark.parametrize(("levels", "tokens"), [(1, 64), (1, 203), (2, 203), (3, 70), (2, 3)])
def test_the_mask_of_flex_attention_names_the_keys_of_llsa(levels: int, tokens: int) -> None:
    spec = replace(SMALL, levels=levels, topk=3)
    qkv = clustered_qkv(spec, 1, 1, tokens)
    starts, total = flex._starts(spec, tokens)
    rows = -(-tokens // spec.block)
    places, counts = flex._blocks(spec, select(spec, *qkv[:2]), rows, starts, tokens)
    keys, values = (flex._packed(spec, x) for x in qkv[1:])
    weights = flex._log_weights(spec, tokens, total)
    assert keys.shape[2] == total
    found = []
    for token in range(tokens):
        line = token // spec.block
        blocks = places[0, 0, line, : counts[0, 0, line]]
        at = (blocks[:, None] * spec.block + torch.arange(spec.block)).flatten().long()
        logits = keys[0, 0, at] @ qkv[0][0, 0, token] / math.sqrt(spec.head_dim) + weights[at]
        found.append(logits.softmax(-1) @ values[0, 0, at])
    o, _ = attention(spec, *qkv)
    assert torch.allclose(torch.stack(found), o[0, 0], atol=1e-5)


def test_flex_attention_says_why_it_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    qkv = clustered_qkv(SMALL, 1, 1, 40)
    assert "enrichment" in str(flex.flex_call(replace(SMALL, enrichment="none"), qkv))
    monkeypatch.setattr(flex, "MOST_BYTES", 10)
    assert "mask would take" in str(flex.flex_call(SMALL, qkv))


# -- the transpose -----------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 10**6))
@budget(30)
def test_a_dense_mask_gives_the_same_transpose(keys: int, topk: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(2, 3, keys, keys, generator=generator).argsort(-1)[..., :topk].int()
    idx = torch.nn.functional.pad(drawn, (0, max(0, topk - keys)), value=-1)
    idx = torch.where(torch.rand(idx.shape, generator=generator) < 0.2, -1, idx)
    for mine, theirs in zip(transpose_indices(idx, keys), dense_transpose(idx, keys), strict=True):
        assert torch.equal(mine, theirs)


def test_the_gradient_from_masks_has_the_same_bits() -> None:
    spec = replace(SMALL, levels=2)
    backward = list(passes(spec, clustered_qkv(spec, 1, 2, 203), "cpu"))[-1]
    kernels = [step for step in backward.steps if isinstance(step.stage, GradKVStage)]
    expected = {name: backward.run.tensors[name].clone() for name in ("k_grad", "v_grad")}
    found = masked_gradient(spec, backward, kernels)
    assert all(torch.equal(found[name], x) for name, x in expected.items())


def test_a_mask_grows_with_the_square_of_the_rows() -> None:
    sizes = [mask_bytes([torch.zeros(1, 2, rows, 3)]) for rows in (100, 200)]
    assert sizes[1] == pytest.approx(4 * sizes[0], rel=0.02)


# -- the model ---------------------------------------------------------------------------------


def test_the_work_of_the_stages_is_that_of_the_pass(tmp_path: Path) -> None:
    point = Point(asked(tmp_path, spec=replace(SMALL, levels=2), heads=2), 203)
    for one in passes(point.spec, point.qkv, "cpu"):
        cost, works = point.cost(one.direction), stage_works(one, point.cost(one.direction))
        phases = {name: len(steps) for name, steps in one.repeatables().items()}
        assert sum(work.flops for work in works.values()) == cost.flops
        assert sum(phases.values()) == len(stages_of(cost))


def test_memory_grows_with_length_and_heads(tmp_path: Path) -> None:
    small = asked(tmp_path)
    assert memory_of(small, 4096) > memory_of(small, 1024)
    assert memory_of(replace(small, heads=4), 1024) > 3 * memory_of(small, 1024)


def test_with_levels_auto_every_length_has_its_own_depth(tmp_path: Path) -> None:
    spec = Spec(levels="auto", seq_len=262_144, dtype="fp32")
    auto = asked(tmp_path, spec=spec)
    assert auto.spec_at(1024).depth < auto.spec_at(262_144).depth


# -- whole runs --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("bench") / "new"
    return run(asked(out, dense_limit=50), lambda *_args, **_kwargs: None)


def test_files_hold_what_was_returned_and_nothing_lies_beside_them(report: dict[str, Any]) -> None:
    table, document, picture = map(Path, report["files"])
    assert sorted(table.parent.iterdir()) == sorted((table, document, picture))
    assert json.loads(document.read_text(encoding="utf-8")) == json.loads(json.dumps(report))
    assert picture.read_bytes().startswith(b"\x89PNG")
    with table.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [float(row["seconds"]) for row in rows] == [row["seconds"] for p in report["points"] for row in p["rows"]]


def test_a_report_names_the_instruction_set_that_ran(report: dict[str, Any]) -> None:
    isa = architecture_of(get_target("cpu"))
    assert report["machine"]["isa"] == isa and {point["isa"] for point in report["points"]} == {isa}


def test_a_run_has_every_part_at_every_length(report: dict[str, Any]) -> None:
    for point in report["points"]:
        assert point["check"]["right"] and point["notes"] == {"flex": "not asked for"}
        rows = point["rows"]
        parts = {row["part"] for row in rows}
        assert parts == {FORWARD, TRAINING, "stages of forward", "stages of backward"}
        assert all(row["p10"] <= row["seconds"] <= row["p90"] and row["matmul_share"] >= 0 for row in rows)
        assert {row["name"] for row in rows if row["part"] == FORWARD} == {"llsa", "sdpa"}
        assert all(row["predicted"] > 0 for row in rows if row["name"] == "llsa")
    assert set(report["summary"]) == {FORWARD, TRAINING}
    assert [len(found) for found in report["summary"][FORWARD]["growth"].values()] == [1, 1, 1]


def test_long_dense_attention_is_scaled_up_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llsa_gen.bench.attention.DENSE_ROWS", 30)
    found = run(asked(tmp_path, dense_limit=50), lambda *_args, **_kwargs: None)
    rows = [row for point in found["points"] for row in point["rows"] if row["part"] == TRAINING]
    factors = {(row["tokens"], row["name"]): row["factor"] for row in rows}
    assert factors == {
        (40, "llsa"): 1.0,
        (40, "sdpa"): 1.0,
        (40, "sdpa_slice"): pytest.approx(40 / 30),
        (90, "llsa"): 1.0,
        (90, "sdpa"): 3.0,
    }
    assert [one["tokens"] for one in found["summary"][TRAINING]["extrapolation"]] == [40]


def test_a_wrong_result_is_not_timed_and_ends_with_its_own_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {"right": False, "why": ["o: too far"], "rows": 1, "heads": 1, "lists": True}
    monkeypatch.setattr("llsa_gen.bench.attention.examine", lambda *_args: wrong)
    result = invoke("bench", *FLAGS, "--tokens", "40", "--out", tmp_path)
    assert result.exit_code == 1
    assert "WRONG and not timed: o: too far" in result.stdout


def test_the_transpose_has_both_forms_of_both_parts(tmp_path: Path) -> None:
    data = data_of("bench", "transpose", *FLAGS, "--tokens", "40,90", "--heads", 1, "--out", tmp_path)
    rows = [(row["tokens"], row["part"], row["form"]) for point in data["points"] for row in point["rows"]]
    assert len(set(rows)) == len(rows) == 8
    assert all(point["check"] == {"right": True, "why": [], "compared": True} for point in data["points"])
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["transpose.csv", "transpose.json", "transpose.png"]


def test_a_mask_that_does_not_fit_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llsa_gen.bench.transpose.MOST_OF_MEMORY", 0.0)
    result = invoke("bench", "transpose", *FLAGS, "--tokens", "40", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "no dense mask" in result.stdout and "inverted lists" in result.stdout


def test_without_gradients_only_the_forward_pass_is_measured(tmp_path: Path) -> None:
    data = data_of("bench", *FLAGS, "--no-gradient", "--tokens", "40", "--out", tmp_path)
    assert {row["part"] for row in data["points"][0]["rows"]} == {FORWARD, "stages of forward"}


def test_quiet_prints_the_files(tmp_path: Path) -> None:
    said = invoke("bench", *FLAGS, "--tokens", "40", "--out", tmp_path, "--quiet").stdout.split()
    assert [Path(line).name for line in said] == ["attention.csv", "attention.json", "attention.png"]


# -- what is refused ---------------------------------------------------------------------------


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "none"
    data = data_of("bench", "--tokens", "1k,65536", "--heads", 3, "--out", out, "--dry-run")
    assert [one["tokens"] for one in data["lengths"]] == [1024, 65536]
    assert data["lengths"][0]["slug"] == "llsa_l2_b16_k8_d64_fp32"
    assert len(data["files"]) == 3 and not out.exists()
    assert "would measure" in invoke("bench", "--dry-run").stdout


BAD: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "no heads": (("--heads", "0"), ("heads", "0", "1 to 128")),
    "dtype": (("--dtype", "fp31"), ("fp31", "fp32")),
    "no length": (("--tokens", "0"), ("tokens", "0")),
    "word": (("--tokens", "1k,many"), ("--tokens", "1k,many", "whole numbers")),
    "empty": (("--tokens", ""), ("--tokens", "whole numbers")),
    "descending": (("--tokens", "2k,1k"), ("tokens", "ascending")),
    "too long": (("--tokens", "999999999k"), ("tokens", "out of its range")),
    "no time": (("--seconds", "0"), ("seconds", "more than 0")),
    "endless": (("--seconds", "nan"), ("seconds", "more than 0")),
    "no dense rows": (("--dense-limit", "0"), ("dense-limit", "0")),
    "target": (("--target", "sm90"), ("--target", "sm90", "gpu_evidence")),
    "two specs": (("--from", "llsa_gen/catalog.toml"), ("one spec", "--name")),
    "mode": (("transposed",), ("transposed", "transpose")),
}


@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["run", "dry"])
@pytest.mark.parametrize(("args", "words"), BAD.values(), ids=BAD)
def test_bad_input_gets_one_clear_error(
    args: tuple[str, ...], words: tuple[str, ...], dry: tuple[str, ...], tmp_path: Path
) -> None:
    expect_error(invoke("bench", *args, *dry, "--out", tmp_path / "out"), 2, *words)
    assert not list(tmp_path.iterdir())


def test_a_length_that_does_not_fit_in_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request, "available_memory", lambda: 1 << 20)
    with pytest.raises(InputError, match="lower --heads") as caught:
        check(asked(tmp_path / "out", tokens=(100, 100_000)))
    assert has_all_parts(str(caught.value))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_refused_early(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    result = invoke("bench", *FLAGS, "--tokens", "40", "--out", file / "below")
    expect_error(result, 6, str(file / "below"), "--out")


def test_the_transpose_needs_gradients(tmp_path: Path) -> None:
    expect_error(invoke("bench", "transpose", "--no-gradient", "--out", tmp_path), 2, "--no-gradient")


def test_without_matplotlib_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request, "find_spec", lambda name: None)
    with pytest.raises(ToolMissingError, match=r"llsa-gen\[bench\]"):
        check(asked(tmp_path))


def test_the_first_head_is_the_first() -> None:
    assert torch.equal(first(torch.arange(12.0).view(2, 3, 2)), torch.tensor([[[0.0, 1.0]]]))
