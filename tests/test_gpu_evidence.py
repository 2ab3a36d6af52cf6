# SPDX-License-Identifier: Apache-2.0
"""The evidence script without a GPU: the budget, the record, the steps, and a dry run of all of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llsa_gen.codegen import render
from llsa_gen.evidence import checks, process
from llsa_gen.evidence.budget import RESERVE, Budget, Need, share
from llsa_gen.evidence.compare import LAYOUTS, PROBLEMS, compare, laid_out
from llsa_gen.evidence.prebuilt import alternatives, candidates, main_spec, needed
from llsa_gen.evidence.record import Record, finite
from llsa_gen.evidence.run import Request, command_of, environment_of, is_wrong
from llsa_gen.evidence.setting import Setting
from llsa_gen.evidence.steps import STEPS, work_of
from llsa_gen.evidence.timing import Rounds, interleaved, summary
from llsa_gen.jit import toolchain
from llsa_gen.jit.toolchain import PINNED_TILELANG
from llsa_gen.paths import CACHE_VARIABLE
from llsa_gen.workloads import clustered_qkv
from tests.strategies import budget
from tests.tree import ROOT

NEEDS = st.lists(st.tuples(st.floats(1, 100), st.floats(0, 500)), min_size=1, max_size=8)
SCRIPT = ROOT / "tools" / "gpu_evidence.py"


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
from llsa_gen.jit import kernel_digest
from llsa_gen.targets import get_target
for wanted in needed("sm90"):
    print(kernel_digest(wanted.package, wanted.kernel, get_target("sm90")), wanted.is_built("sm90"))
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
    from llsa_gen.jit import kernel_digest
    from llsa_gen.targets import get_target

    here = [kernel_digest(wanted.package, wanted.kernel, get_target("sm90")) for wanted in needed("sm90")]
    assert shown.stdout.split() == [word for key in here for word in (key, "False")]


def test_the_benchmarked_spec_is_built_first_and_alternatives_are_other_schedules_that_fit() -> None:
    package = render(main_spec())
    wanted = list(needed("sm90"))
    assert [one.kernel for one in wanted[: len(package.kernels)]] == list(package.kernels)
    others = list(alternatives("sm90"))
    solved = {kernel.name: dict(kernel.schedules)["sm90"] for kernel in package.kernels}
    assert others and all(dict(one.kernel.schedules)["sm90"] != solved[one.kernel.name] for one in others)
    for kernel in package.kernels:
        assert solved[kernel.name] in candidates(package, kernel, "sm90")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_keep_the_values(layout: str) -> None:
    drawn = clustered_qkv(main_spec(), 2, 3, 5)
    for before, after in zip(drawn, laid_out(drawn, layout), strict=True):
        assert torch.equal(before, after)
        assert after.is_contiguous() == (layout == "plain")


def test_a_comparison_that_raises_is_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr("llsa_gen.evidence.compare.select", broken)
    verdict = compare(PROBLEMS[0], "cpu", 0)
    assert verdict["right"] is False and "illegal memory access" in verdict["why"][0]


def test_calls_are_timed_in_turn() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in ("one", "two")}
    times = interleaved(calls, "cpu", Rounds(count=3, warmup=1))
    assert order == ["one", "two"] * 4
    assert times["one"]["samples"] == 3
    assert summary([3.0, 1.0, 2.0])["median"] == 2.0


def test_other_tools_that_are_missing_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    monkeypatch.setattr(checks, "find_sanitizer", lambda: None)
    setting = Setting("cuda", "sm90", 60.0)
    assert "hypothesis" in next(iter(checks.tests(setting)))["skipped"]
    assert "not installed" in next(iter(checks.memcheck(setting)))["skipped"]
    command = checks.sanitizer_command("racecheck", setting, "compute-sanitizer")
    assert command[:3] == ["compute-sanitizer", "--tool", "racecheck"] and "exercise" in command


def test_a_dry_run_walks_through_everything_and_names_kernels_that_are_missing(tmp_path: Path) -> None:
    folders = ["--out", str(tmp_path / "out"), "--prebuilt", str(tmp_path / "kernels")]
    command = [sys.executable, str(SCRIPT), "--dry-run", "--minutes", "20", *folders]
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
    assert kinds == ["check", "forward", "stages", "host"]
    assert {result["kernel"] for result in steps["tune"]["results"]} == {k.name for k in render(main_spec()).kernels}


def test_without_a_gpu_a_real_run_is_refused_and_says_what_works(device: torch.device, tmp_path: Path) -> None:
    if device.type == "cuda":
        return  # then a real run is what the script is for
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path)]
    shown = subprocess.run(
        command, capture_output=True, text=True, check=False, env={"CUDA_VISIBLE_DEVICES": "", "PATH": ""}
    )
    assert shown.returncode == 2 and "--dry-run" in shown.stderr
