# SPDX-License-Identifier: Apache-2.0
"""The evidence script without a GPU: the budget, the record, the steps, and a dry run of all of it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llsa_gen.catalog import catalogue
from llsa_gen.codegen import render
from llsa_gen.evidence import checks, judge, process
from llsa_gen.evidence.bench import BACKENDS, dense_error, dense_gradient_error, forward, training
from llsa_gen.evidence.budget import RESERVE, Budget, Need, share
from llsa_gen.evidence.calls import Trained, train, upward_gradients
from llsa_gen.evidence.compare import LAYOUTS, PROBLEMS, compare, exercise, laid_out
from llsa_gen.evidence.passes import Pass, passes
from llsa_gen.evidence.places import AGREE, places_of
from llsa_gen.evidence.prebuilt import MAIN, WORTH, alternatives, by_worth, candidates, main_spec, needed
from llsa_gen.evidence.record import Record, finite
from llsa_gen.evidence.run import Request, command_of, environment_of, is_wrong
from llsa_gen.evidence.setting import Setting
from llsa_gen.evidence.steps import STEPS, work_of
from llsa_gen.ir.reach import needed_stages
from llsa_gen.ir.sizes import short_lists
from llsa_gen.jit import build, digest_with_schedule, toolchain
from llsa_gen.jit.toolchain import PINNED_TILELANG
from llsa_gen.lowering import lower
from llsa_gen.ops.engine import list_names
from llsa_gen.ops.execute import run_steps
from llsa_gen.paths import CACHE_VARIABLE
from llsa_gen.stages import STAGE_KINDS
from llsa_gen.targets import get_target
from llsa_gen.workloads import clustered_qkv
from tests.kernels.calls import FORMS, inverted_in
from tests.strategies import budget
from tests.tree import ROOT

NEEDS = st.lists(st.tuples(st.floats(1, 100), st.floats(0, 500)), min_size=1, max_size=8)
SCRIPT = ROOT / "tools" / "gpu_evidence.py"
PARTS = (("machine", "kernels", "compare", "tests"), ("memcheck", "racecheck", "bench"), ("schedules",))
"""The commands in which a run is split where each may take ten minutes."""
HERE = Setting("cpu", "sm90", 60.0, tiny=True)


def needs_of(drawn: list[tuple[float, float]]) -> list[Need]:
    return [Need(f"step{index}", least, least + more) for index, (least, more) in enumerate(drawn)]


@given(drawn=NEEDS, seconds=st.floats(0, 2000))
@budget(100)
def test_a_budget_is_never_spent_twice(drawn: list[tuple[float, float]], seconds: float) -> None:
    needs = needs_of(drawn)
    allowed = share(needs, seconds)
    given_out = [value for value in allowed.values() if value is not None]
    assert sum(given_out) <= max(0.0, seconds - RESERVE) + 1e-4
    assert all(
        value is None or need.least <= value <= need.most for need, value in zip(needs, allowed.values(), strict=True)
    )


@given(drawn=NEEDS)
@budget(50)
def test_enough_time_gives_every_step_its_most_and_the_least_that_suffices_runs_all(
    drawn: list[tuple[float, float]],
) -> None:
    needs = needs_of(drawn)
    plenty = share(needs, RESERVE + 1.0 + sum(need.most for need in needs))
    assert plenty == pytest.approx({need.name: need.most for need in needs})
    scarce = share(needs, RESERVE + 1e-3 + sum(need.least for need in needs))
    assert None not in scarce.values()


def test_a_valuable_step_is_not_starved_by_those_after_it() -> None:
    first, later = Need("first", 10, 100), [Need("later", 500, 500)]
    assert Budget(60, clock=lambda: 0.0).allow(first, later) == 10
    assert Budget(5, clock=lambda: 0.0).allow(first, later) is None


def test_time_runs_out() -> None:
    now = [0.0]
    spent = Budget(100, clock=lambda: now[0])
    now[0] = 90.0
    assert spent.left == pytest.approx(100 - 90 - RESERVE)
    now[0] = 1000.0
    assert spent.left == 0.0


def test_a_record_is_whole_after_every_result(tmp_path: Path) -> None:
    record = Record(tmp_path / "new", target="sm90")
    for index in range(3):
        record.add("step", {"index": index})
        on_disk = json.loads(record.path.read_text())
        assert on_disk["steps"]["step"]["results"] == [{"index": i} for i in range(index + 1)]
    record.state("step", status="done")
    assert json.loads(record.path.read_text())["steps"]["step"]["status"] == "done"
    assert [path.name for path in record.path.parent.iterdir()] == ["record.json"]


def test_a_record_that_cannot_be_written_leaves_the_last_one(tmp_path: Path) -> None:
    record = Record(tmp_path)
    before = record.path.read_text()
    with pytest.raises(ValueError, match="JSON"):
        record.add("step", {"value": float("nan")})
    assert record.path.read_text() == before
    assert list(tmp_path.iterdir()) == [record.path]
    assert finite(float("nan")) is finite(float("inf")) is None and finite(1.5) == 1.5


def test_a_process_that_hangs_is_ended_and_what_it_said_is_kept() -> None:
    lines: list[str] = []
    program = "import time; print('one', flush=True); time.sleep(60)"
    outcome = process.run([sys.executable, "-c", program], 3.0, lines.append)
    assert (outcome.status, outcome.code, lines) == ("stopped", None, ["one"])
    assert outcome.seconds < 30


@pytest.mark.parametrize(("program", "status"), [("print(1)", "done"), ("raise SystemExit(3)", "failed")])
def test_a_process_says_how_it_ended(program: str, status: str) -> None:
    outcome = process.run([sys.executable, "-c", program], 60.0, lambda line: None)
    assert outcome.status == status
    assert outcome.code == (0 if status == "done" else 3)


@pytest.mark.parametrize(
    ("result", "wrong"),
    [
        ({"right": True}, False),
        ({"right": False}, True),
        ({"right": 3, "of": 4}, False),
        ({"missing": []}, False),
        ({"missing": ["kernel"]}, True),
        ({"counts": {"passed": 3}, "failures": [], "not_built": 2}, False),
        ({"counts": {"failed": 1}, "failures": ["FAILED tests/x"]}, True),
        ({"tool": "memcheck", "code": 0}, False),
        ({"tool": "memcheck", "code": 9}, True),
    ],
)
def test_what_counts_as_wrong(result: dict[str, Any], wrong: bool) -> None:
    assert is_wrong(result) is wrong


def test_every_step_has_code_and_a_reason() -> None:
    for step in STEPS:
        assert callable(work_of(step.need.name)) and step.about
        assert 0 < step.need.least <= step.need.most
    assert len({step.need.name for step in STEPS}) == len(STEPS)


def test_half_an_hour_suffices_for_all_and_ten_minutes_for_a_part() -> None:
    needs = {step.need.name: step.need for step in STEPS}
    assert [name for part in PARTS for name in part] == list(needs)
    assert RESERVE + sum(need.most for need in needs.values()) <= 27 * 60
    for part in PARTS:
        allowed = share([needs[name] for name in part], 9 * 60)
        assert allowed == pytest.approx({name: needs[name].most for name in part})
        assert f"--steps {' '.join(part)}" in SCRIPT.read_text(encoding="utf-8")


def test_prebuilt_kernels_are_used_and_nothing_is_built_on_the_gpu(tmp_path: Path) -> None:
    request = Request(1, tmp_path, "sm90", prebuilt=tmp_path / "kernels")
    environment = environment_of(STEPS[-1], request)
    assert environment[CACHE_VARIABLE] == str(tmp_path / "kernels")
    assert environment["LLSA_GEN_BUILD"] == "0"
    command = command_of(STEPS[-1], request, 30.0)
    assert command[command.index("--device") + 1] == "cuda" and "--tiny" not in command


def test_a_dry_run_looks_into_the_prebuilt_kernels_but_makes_its_own_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, "own")
    request = Request(1, tmp_path, "sm90", prebuilt=tmp_path / "kernels", dry=True)
    places = {step.need.name: environment_of(step, request)[CACHE_VARIABLE] for step in STEPS}
    assert {name for name, place in places.items() if place != "own"} == {"machine", "kernels"}


LOOKUP = """
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tilelang", "tvm", "tvm_ffi", "rich", "click", "platformdirs"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Nothing())
from importlib import metadata
real = metadata.version
def version(name):
    if name in ("tilelang", "apache-tvm", "apache-tvm-ffi"):
        raise metadata.PackageNotFoundError(name)
    return real(name)
metadata.version = version
from llsa_gen.evidence.prebuilt import needed
from llsa_gen.jit import digest_with_schedule
from llsa_gen.targets import get_target
for wanted in needed("sm90"):
    print(digest_with_schedule(wanted.package, wanted.kernel, get_target("sm90")), wanted.is_built("sm90"))
"""


def test_kernels_are_found_where_no_compiler_is_installed(empty_cache: Path, tmp_path: Path) -> None:
    assert toolchain.version_of("tilelang") == PINNED_TILELANG
    command = [sys.executable, "-c", LOOKUP]
    shown = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={CACHE_VARIABLE: str(empty_cache), "PATH": ""},
    )
    here = [digest_with_schedule(wanted.package, wanted.kernel, get_target("sm90")) for wanted in needed("sm90")]
    assert shown.stdout.split() == [word for key in here for word in (key, "False")]


def test_the_benchmarked_spec_is_built_first_and_alternatives_are_other_schedules_that_fit() -> None:
    package = render(main_spec())
    kernels = package.kernels_for("sm90")
    wanted = list(needed("sm90"))
    assert [one.kernel for one in wanted[: len(kernels)]] == list(kernels)
    others = list(alternatives("sm90"))
    solved = {kernel.name: dict(kernel.schedules)["sm90"] for kernel in kernels}
    assert others and all(dict(one.kernel.schedules)["sm90"] != solved[one.kernel.name] for one in others)
    for kernel in kernels:
        assert solved[kernel.name] in candidates(package, kernel, "sm90")
    assert {plan.direction for plan in package.plans_for("sm90")} == {"forward", "backward"}
    assert sorted(kernel.name for kernel in by_worth(kernels)) == sorted(kernel.name for kernel in kernels)
    assert by_worth(kernels)[0].key.kind == "attend"


def test_lists_alone_need_no_other_kernels_than_the_catalogue() -> None:
    machine = get_target("sm90")
    there = {digest_with_schedule(wanted.package, wanted.kernel, machine) for wanted in needed("sm90")}
    for spec in (catalogue()[problem.name].spec for problem in PROBLEMS):
        package = render(replace(spec, value_dim=None, enrichment="overlap", weight="c"))  # as llsa_select asks
        stages = needed_stages(package.plan("sm90"), list_names(spec))
        kernels = [package.kernel_of(package.plan("sm90"), stage) for stage in stages]
        assert {digest_with_schedule(package, kernel, machine) for kernel in kernels} <= there


def test_every_kind_of_kernel_can_be_judged_and_ranked() -> None:
    assert set(AGREE) == set(WORTH) == set(STAGE_KINDS)


KERNELS = {kernel.name for kernel in render(main_spec()).kernels_for(HERE.runs)}
OF_LONG_LISTS = {"invert_index_phasecount", "invert_index_phasescan", "invert_index_phasescatter"}
"""Kernels that small problems do not need."""


@pytest.fixture(scope="module")
def both() -> tuple[Pass, ...]:
    """A small forward and backward pass of the main spec."""
    return tuple(passes(main_spec(), clustered_qkv(main_spec(), 1, 2, 300), HERE.runs))


def test_every_stage_can_be_run_again_and_gives_the_same(both: tuple[Pass, ...]) -> None:
    ran = []
    for one in both:
        before = {name: x.clone() for name, x in one.run.tensors.items()}
        for unit in one.units:
            assert unit.results
            for name, x in unit.run(one.run).items():
                assert torch.equal(x, before[name]), name
        for steps in one.repeatables().values():
            for _ in range(3):
                run_steps(steps, one.run)
            ran += [step.stage.name for step in steps]
        read = {name for unit in one.units for name in unit.results}
        assert all(torch.equal(one.run.tensors[name], before[name]) for name in read)
    plans = [lower(main_spec(), one.direction, short_lists(main_spec(), 300)) for one in both]
    assert set(ran) == {stage.name for plan in plans for stage in plan.stages}


def test_every_kernel_has_a_place_where_it_is_tried(both: tuple[Pass, ...]) -> None:
    places = places_of(both)
    assert set(places) == KERNELS - OF_LONG_LISTS
    assert places["attend_fine"][2] is both[0].run and places["delta"][2] is both[1].run
    assert places["invert_index_phasewhole"][1].name == "invert_index_1"
    assert [step.stage.name for step in places["attend_grad_kv_fine"][0].steps] == [
        "attend_grad_kv_0",
        "merge_grad_kv_0",
    ]


def test_long_lists_are_inverted_by_kernels_of_their_own() -> None:
    with inverted_in(FORMS[1]):
        places = places_of(tuple(passes(main_spec(), clustered_qkv(main_spec(), 1, 2, 300), HERE.runs)))
    assert set(places) == KERNELS - {"invert_index_phasewhole"}
    unit, stage, _ = places["invert_index_phasescan"]
    assert stage.name == "scan_entries_1" and [step.kernel.name for step in unit.steps] == sorted(OF_LONG_LISTS)
    assert set(unit.results) == {"offsets1", "rows1", "part_offsets1", "part_nodes1"}


def test_a_schedule_that_gives_something_else_is_refused(both: tuple[Pass, ...]) -> None:
    for place in places_of(both).values():
        expected = place.results()
        assert place.disagreement(expected) is None
        for name, x in expected.items():
            wrong = x + (1 + x.abs().max()) if x.is_floating_point() else x.roll(1, 2) + 1
            found = place.disagreement({**expected, name: wrong})
            assert found is not None and name in found
    delta = places_of(both)["delta"]
    assert delta.disagreement({name: torch.full_like(x, torch.nan) for name, x in delta.results().items()}) is not None


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_keep_the_values(layout: str) -> None:
    drawn = clustered_qkv(main_spec(), 2, 3, 5)
    for before, after in zip(drawn, laid_out(drawn, layout), strict=True):
        assert torch.equal(before, after)
        assert after.is_contiguous() == (layout == "plain")


def test_a_comparison_that_raises_is_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("llsa_gen.evidence.judge.select", broken)
    verdict = compare(PROBLEMS[0], "cpu", 0)
    assert verdict["right"] is False and "illegal memory access" in verdict["why"][0]


@pytest.mark.parametrize("operand", range(3), ids="qkv")
def test_a_wrong_gradient_and_other_bits_are_found(operand: int, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, turns = main_spec(), [0]
    qkv = clustered_qkv(spec, 1, 2, 70)
    assert judge.examine(spec, qkv)["right"]

    def distorted(*arguments: Any) -> Trained:
        found, turns[0] = train(*arguments), turns[0] + 1
        gradients = [x.clone() for x in found.gradients]
        gradients[operand][0, 0] *= 1.2 if mode == "wrong" or turns[0] == 1 else 1.0
        return Trained(found.results, tuple(gradients))

    monkeypatch.setattr(judge, "train", distorted)
    mode = "wrong"
    verdict = judge.examine(spec, qkv, first_head=True)
    assert not verdict["right"] and [why.split(":")[0] for why in verdict["why"]] == [f"{'qkv'[operand]}_grad"]
    mode, turns[0] = "other bits", 0
    assert "other bits" in judge.examine(spec, qkv)["why"][0]


def test_what_a_sanitizer_watches_includes_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("llsa_gen.evidence.compare.catalogue", lambda: {MAIN: catalogue()[MAIN]})
    monkeypatch.setattr("llsa_gen.evidence.compare.train", lambda *given: seen.append(train(*given)))
    assert [result["ran"] for result in exercise(HERE)] == [main_spec().slug]
    assert len(seen[0].gradients) == 3


def test_dense_results_are_checked_and_both_contests_do_the_same_work() -> None:
    q, k, v = (x.double() for x in clustered_qkv(main_spec(), 1, 2, 100))
    o_grad = upward_gradients(v)[0]
    given = [x.requires_grad_() for x in (q, k, v)]
    o = torch.nn.functional.scaled_dot_product_attention(given[0], given[1], given[2])
    q_grad, _, _ = torch.autograd.grad(o, given, o_grad)
    q, k, v = (x.detach() for x in given)
    assert dense_error((q, k, v), o.detach()) < 1e-12
    assert dense_gradient_error((q, k, v), o_grad, q_grad) < 1e-12 < dense_gradient_error((q, k, v), o_grad, 2 * q_grad)
    qkv = clustered_qkv(main_spec(), 1, 2, 100)
    assert forward(main_spec(), qkv).mine()[0].shape == forward(main_spec(), qkv).dense()[0].shape
    trained = training(main_spec(), qkv)
    assert [x.shape for x in trained.mine()] == [x.shape for x in trained.dense()] == [x.shape for x in qkv]
    assert set(BACKENDS) == {"sdpa_flash", "sdpa_cudnn"}


def test_other_tools_that_are_missing_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    monkeypatch.setattr(checks, "find_sanitizer", lambda: None)
    setting = Setting("cuda", "sm90", 60.0)
    assert "hypothesis" in next(iter(checks.tests(setting)))["skipped"]
    assert "not installed" in next(iter(checks.memcheck(setting)))["skipped"]
    command = checks.sanitizer_command("racecheck", setting, "compute-sanitizer")
    assert command[:3] == ["compute-sanitizer", "--tool", "racecheck"] and "exercise" in command


def test_a_dry_run_walks_through_everything_and_names_kernels_that_are_missing(tmp_path: Path) -> None:
    build(main_spec(), "c")
    folders = ["--out", str(tmp_path / "out"), "--prebuilt", str(tmp_path / "kernels")]
    command = [sys.executable, str(SCRIPT), "--dry-run", *folders]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    steps = record["steps"]
    assert record["dry"] is True and list(steps) == [step.need.name for step in STEPS]
    ran = {name for name, step in steps.items() if step["status"] == "done"}
    assert ran == {step.need.name for step in STEPS if step.tried}, shown.stdout + shown.stderr
    assert all("would run" in step["would"] for step in steps.values())
    last = steps["kernels"]["results"][-1]
    assert shown.returncode == 1 and len(last["missing"]) == len(list(needed("sm90")))
    assert last["command"] == "python tools/gpu_evidence.py --prepare sm90"
    assert all(verdict["right"] for verdict in steps["compare"]["results"])
    kinds = [result["kind"] for result in steps["bench"]["results"]]
    assert kinds == ["check", "forward", "training", "stages", "stages", "host"]
    assert {result["kernel"] for result in steps["schedules"]["results"]} == KERNELS - OF_LONG_LISTS


def test_without_a_gpu_a_real_run_is_refused_and_says_what_works(device: torch.device, tmp_path: Path) -> None:
    if device.type == "cuda":
        return  # then a real run is what the script is for
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path)]
    shown = subprocess.run(
        command, capture_output=True, text=True, check=False, env={"CUDA_VISIBLE_DEVICES": "", "PATH": ""}
    )
    assert shown.returncode == 2 and "--dry-run" in shown.stderr
