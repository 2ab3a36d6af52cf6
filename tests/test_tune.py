# SPDX-License-Identifier: Apache-2.0
"""The tuner: its space is right, its records hold or are left alone, and an interrupted run goes on where it was."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llsa_gen import jit
from llsa_gen.codegen import KernelPackage, render
from llsa_gen.errors import InternalError, OutputError, StaleError
from llsa_gen.evidence.calls import attention
from llsa_gen.evidence.judge import judge
from llsa_gen.evidence.passes import passes
from llsa_gen.ir.sizes import short_lists
from llsa_gen.jit import Kernel, Machine, digest_with_schedule, machine_of
from llsa_gen.jit import tuned as lookup
from llsa_gen.jit.isa import ISAS
from llsa_gen.jit.records import Record, Trial, file_name, read, records_dir, write
from llsa_gen.ops import launch
from llsa_gen.ops.calls import forget_passes
from llsa_gen.ops.engine import select as select_lists
from llsa_gen.paths import CACHE_VARIABLE, TUNING_VARIABLE
from llsa_gen.schedule import Schedule, fits, solve
from llsa_gen.spec import Spec
from llsa_gen.timing import Call
from llsa_gen.tuning import Request, dry_run, run
from llsa_gen.tuning.oracle import Oracle
from llsa_gen.tuning.trials import Contest, Workshop
from llsa_gen.workloads import clustered_qkv
from tests.command_line import data_of, expect_error, has_all_parts, invoke
from tests.schedules import CPU, kernel_named, other_schedule, recorded
from tests.strategies import budget

SMALL = Spec(levels=1, block=4, topk=1, head_dim=16, dtype="fp32", gradient=False)
FLAGS = ("--levels", "1", "--block", "4", "--k", "1", "--head-dim", "16", "--dtype", "fp32", "--no-gradient")
QUICK: dict[str, Any] = {"tokens": 300, "heads": 1, "seconds": 1e-3}
QUICK_FLAGS = (*FLAGS, "--tokens", "300", "--heads", "1", "--seconds", "0.001")

counts = st.integers(1, 4096)
seconds = st.fixed_dictionaries({"median": st.floats(1e-6, 10), "lowest": st.floats(1e-6, 10)})
schedules = st.builds(Schedule, counts, counts, threads=st.just(1))
machines = st.builds(
    Machine,
    st.text(max_size=20),
    st.sampled_from(ISAS),
    st.integers(1, 256),
    st.dictionaries(st.sampled_from(["L1", "L2", "L3"]), st.integers(1, 2**30)),
)
trials = st.builds(Trial, schedules, seconds, seconds) | st.builds(Trial, schedules, why=st.text(max_size=20))
records = st.builds(
    Record,
    st.sampled_from(["attend_fine", "delta"]),
    st.sampled_from(["0" * 32, "f" * 32]),
    machines,
    st.dictionaries(st.sampled_from(["torch", "tvm"]), st.text(max_size=9)),
    st.fixed_dictionaries({"batch": st.just(1), "heads": counts, "tokens": counts}),
    st.lists(trials, max_size=4).map(tuple),
    st.none() | schedules,
    st.booleans(),
)


@pytest.fixture(autouse=True)
def _on_cpu_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(launch, "CPU_TARGET", "cpu")
    forget_passes()
    yield
    forget_passes()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of records, named."""
    place = tmp_path / "tuning"
    monkeypatch.setenv(TUNING_VARIABLE, str(place))
    return place


def schedule_of(spec: Spec, name: str) -> Schedule:
    """The schedule that a kernel would be loaded with now."""
    package = lookup(render(spec), "cpu")
    return dict(next(kernel for kernel in package.kernels if kernel.name == name).schedules)["cpu"]


# -- records -----------------------------------------------------------------------------------


@given(record=records)
@budget(60)
def test_a_record_is_read_as_it_was_written(record: Record, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("records")
    path = write(record, folder)
    assert read(path) == record
    assert [one.name for one in folder.iterdir()] == [record.name]
    assert (file_name(record.kernel, record.identity, replace(record.machine, threads=999)) == record.name) is False


@given(record=records, part=st.floats(0, 1, exclude_max=True), change=st.booleans())
@budget(60)
def test_a_record_that_is_cut_short_or_changed_is_refused(
    record: Record, part: float, change: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write(record, tmp_path_factory.mktemp("records"))
    text = path.read_text(encoding="utf-8")
    broken = text.replace('"heads": ', '"heads": 1') if change else text[: int(part * (len(text) - 2))]
    path.write_text(broken, encoding="utf-8")
    with pytest.raises(StaleError, match="cut short"):
        read(path)


@given(one=seconds, other=seconds)
@budget(40)
def test_a_schedule_is_as_good_as_the_worse_of_its_ratios(one: dict[str, float], other: dict[str, float]) -> None:
    ratio = Trial(Schedule(), one, other).ratio
    assert ratio is not None and all(one[kind] / other[kind] <= ratio for kind in one)
    assert Trial(Schedule(), why="no").ratio is None


def test_a_schedule_on_record_is_used_by_the_next_load_and_is_right(folder: Path) -> None:
    schedule = other_schedule(SMALL, "attend_fine")
    write(recorded(SMALL, "attend_fine", schedule), folder)
    assert schedule_of(SMALL, "attend_fine") == schedule
    assert schedule_of(SMALL, "attend_coarse") == solve(kernel_named(SMALL, "attend_coarse").key, SMALL, CPU)
    qkv = clustered_qkv(SMALL, 1, 1, 333)
    found = attention(SMALL, *qkv)
    assert judge(SMALL, qkv, select_lists(SMALL, *qkv[:2]), found)["right"]
    assert jit.built(SMALL, "cpu")
    package = lookup(render(SMALL), "cpu")
    kernel = next(kernel for kernel in package.kernels if kernel.name == "attend_fine")
    assert jit.cache.find(digest_with_schedule(package, kernel, CPU)) is not None


def test_a_call_with_other_threads_takes_the_record_of_those(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    qkv, schedule = clustered_qkv(SMALL, 1, 1, 333), other_schedule(SMALL, "attend_fine")
    taken: list[Schedule] = []

    def noted(package: KernelPackage, target: str) -> KernelPackage:
        found = lookup(package, target)
        taken.append(next(dict(one.schedules)["cpu"] for one in found.kernels if one.name == "attend_fine"))
        return found

    monkeypatch.setattr(jit, "tuned", noted)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    write(recorded(SMALL, "attend_fine", schedule), folder)
    for threads in (1, 3, 1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=threads: count)
        attention(SMALL, *qkv)
    assert [one == schedule for one in taken] == [False, True]


def test_without_records_nothing_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = render(SMALL)
    assert lookup(package, "cpu") is package
    write(recorded(SMALL, "attend_fine", other_schedule(SMALL, "attend_fine")), folder)
    monkeypatch.setenv(TUNING_VARIABLE, "off")
    assert records_dir() is None and lookup(package, "cpu") is package


FOREIGN = {
    "another processor": {"processor": "Another CPU"},
    "an instruction set that is not the one here": {"isa": "x86-64"},
    "another number of threads": {"threads": 1023},
    "other caches": {"caches": {"L1": 1}},
}


@pytest.mark.parametrize("changes", FOREIGN.values(), ids=FOREIGN)
def test_a_record_of_another_machine_counts_as_none_also_where_it_was_named(
    folder: Path, changes: dict[str, Any]
) -> None:
    machine = replace(machine_of("cpu"), **changes)
    schedule = other_schedule(SMALL, "attend_fine")
    write(recorded(SMALL, "attend_fine", schedule, machine), folder)
    assert schedule_of(SMALL, "attend_fine") == solve(kernel_named(SMALL, "attend_fine").key, SMALL, CPU)
    write(recorded(SMALL, "attend_fine", schedule), folder)
    assert schedule_of(SMALL, "attend_fine") == schedule


def test_a_record_under_the_name_of_this_machine_is_still_of_another(folder: Path) -> None:
    foreign = recorded(SMALL, "attend_fine", other_schedule(SMALL, "attend_fine"), Machine("Another CPU", "v9", 3))
    write(foreign, folder).rename(folder / recorded(SMALL, "attend_fine", None).name)
    with pytest.raises(StaleError, match="processor Another CPU, here"):
        lookup(render(SMALL), "cpu")


def test_what_cannot_be_used_is_left_alone_with_one_line(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(TUNING_VARIABLE)
    folder, package = empty_cache / "tuning", render(SMALL)
    here = machine_of("cpu")
    foreign = replace(here, threads=here.threads + 1)
    write(recorded(SMALL, "attend_fine", other_schedule(SMALL, "attend_fine"), foreign), folder)
    write(recorded(SMALL, "attend_coarse", Schedule(3, 5, threads=1)), folder)  # no such tile
    cut = write(recorded(SMALL, "coarsen_width16_sourcetokens_levels1_emit_sums0", None), folder)
    cut.write_text(cut.read_text()[:100])
    with caplog.at_level(logging.WARNING, logger="llsa_gen"):
        found = [lookup(package, "cpu") for _ in range(3)][-1]
    assert [dict(kernel.schedules) for kernel in found.kernels] == [dict(one.schedules) for one in package.kernels]
    assert len(caplog.records) == 1
    assert "3 tuning records" in caplog.text and f"llsa-gen tune --spec {package.slug}" in caplog.text


def test_a_schedule_that_is_not_offered_is_refused_where_it_was_named(folder: Path) -> None:
    write(recorded(SMALL, "attend_fine", Schedule(3, 5, threads=1)), folder)
    with pytest.raises(StaleError, match="not offered any more") as caught:
        lookup(render(SMALL), "cpu")
    assert has_all_parts(str(caught.value))


def test_a_record_of_another_text_of_the_kernel_is_not_found(folder: Path) -> None:
    record = recorded(SMALL, "attend_fine", other_schedule(SMALL, "attend_fine"))
    write(replace(record, identity="0" * 32), folder)
    assert schedule_of(SMALL, "attend_fine") == solve(kernel_named(SMALL, "attend_fine").key, SMALL, CPU)


def test_half_types_have_records_of_their_own(folder: Path) -> None:
    """Their kernels convert what they load, which takes time."""
    half = replace(SMALL, dtype="bf16")
    write(recorded(SMALL, "attend_fine", other_schedule(SMALL, "attend_fine")), folder)
    assert schedule_of(half, "attend_fine") == solve(kernel_named(half, "attend_fine").key, half, CPU)


# -- runs --------------------------------------------------------------------------------------


def asked(**changes: Any) -> Request:
    return Request(SMALL, **(QUICK | changes))


def quiet(text: str, number: int = 1, total: int = 1) -> None:
    """Progress that nobody wants to see."""


KINDS = ("median", "lowest")


class Clock:
    """Stands in for the clock: what is tried is noted, and takes `factor` of the default's time."""

    def __init__(self, patch: pytest.MonkeyPatch, stop_after: int = 10**9, factor: float = 0.5) -> None:
        self.timed: list[tuple[str, Schedule]] = []
        tried = Contest._tried

        def noted(contest: Contest, schedule: Schedule, made: Any, base: Kernel) -> Trial:
            if len(self.timed) >= stop_after:
                raise KeyboardInterrupt
            self.timed.append((contest.choice.kernel.name, schedule))
            return tried(contest, schedule, made, base)

        def timed(shop: Workshop, calls: Mapping[str, Call], limit: float) -> dict[str, dict[str, float]]:
            for call in calls.values():
                call()
            return {name: dict.fromkeys(KINDS, factor ** min(n, 1)) for n, name in enumerate(calls)}

        patch.setattr(Contest, "_tried", noted)
        patch.setattr(Workshop, "timed", timed)


def test_what_is_taken_is_in_the_space_faster_and_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    data = run(asked(), quiet)
    assert data["complete"] and data["check"]["right"] and data["check"]["rows"] > 0
    assert {"attend_fine", "attend_coarse"} <= {one["kernel"] for one in data["kernels"]}
    for one in data["kernels"]:
        chosen = Schedule(**one["chosen"])
        kernel = kernel_named(SMALL, one["kernel"])
        assert fits(kernel.key, SMALL, CPU, chosen) and chosen != Schedule(**one["default"])
        assert schedule_of(SMALL, one["kernel"]) == chosen == read(Path(one["record"])).chosen
    assert json.loads(json.dumps(data, allow_nan=False)) == data


def test_the_default_stays_where_nothing_is_faster(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch, factor=0.99)
    data = run(asked(), quiet)
    assert data["complete"] and all(one["chosen"] is None for one in data["kernels"])
    package = render(SMALL)
    assert [one.schedules for one in lookup(package, "cpu").kernels] == [one.schedules for one in package.kernels]


def test_a_schedule_that_is_wrong_is_neither_timed_nor_taken(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Contest, "_differs", lambda contest, made, base: "o differs")
    Clock(monkeypatch)
    data = run(asked(), quiet)
    tried = [one for kernel in data["kernels"] for one in kernel["candidates"] if one["tried"]]
    assert tried and all(one["why"] == "WRONG: o differs" and one["ratio"] is None for one in tried)
    assert all(kernel["chosen"] is None for kernel in data["kernels"])


def test_the_oracle_finds_nothing_wrong_with_the_default_kernels() -> None:
    spec = replace(SMALL, gradient=True)
    oracle = Oracle(spec, "cpu", "cpu", short=short_lists(spec, 300))
    for one in oracle.passes:
        assert {step.kernel.name: why for step in one.steps if (why := oracle.wrong(step.kernel))} == {}


def test_a_default_that_is_wrong_ends_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Oracle, "wrong", lambda oracle, kernel: "o is wrong")
    with pytest.raises(InternalError, match="default schedule"):
        run(asked(), quiet)


def test_a_tuned_op_that_is_wrong_or_slower_is_taken_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    verdict = {"right": False, "why": ["o"], "rows": 1}
    with monkeypatch.context() as patch:
        patch.setattr("llsa_gen.tuning.runner._checked", lambda request, package: verdict)
        assert all(one["chosen"] is None for one in run(asked(), quiet)["kernels"])
    with monkeypatch.context() as patch:
        patch.setattr("llsa_gen.tuning.runner._is_worth_it", lambda times: False)
        data = run(asked(again=True), quiet)
        assert all(one["chosen"] is None for one in data["kernels"])
        assert data["taken_back"] == [["forward", 0.5]]
        shown = invoke("tune", *QUICK_FLAGS, "--again").stdout
        assert "forward: taken back, because all kernels together took" in shown


def test_a_pass_is_compared_where_one_of_its_kernels_changed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    data = run(asked(), quiet)
    assert data["passes"] == {"forward": {"default": dict.fromkeys(KINDS, 1.0), "tuned": dict.fromkeys(KINDS, 0.5)}}
    shown = invoke("tune", *QUICK_FLAGS).stdout
    assert "forward: 1,000.00 ms by default, 500.00 ms tuned, 50.0% of it" in shown
    with monkeypatch.context() as patch:
        patch.setattr("llsa_gen.tuning.runner._kernels_of", lambda one: set())
        assert run(asked(again=True), quiet)["passes"] == {"forward": {}}


def test_a_kernel_that_no_input_gives_work_keeps_the_default(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Oracle, "sees", lambda oracle, kernel: False)
    clock = Clock(monkeypatch)
    data = run(asked(), quiet)
    assert data["complete"] and not clock.timed and all(one["chosen"] is None for one in data["kernels"])


def test_an_interrupted_run_goes_on_without_repeating_anything(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [(one["kernel"], one["candidates"]) for one in dry_run(asked())["kernels"]]
    worth = sum(not one["left_out"] for _, candidates in whole for one in candidates) - len(whole)
    clocks = []
    for stop_after in (3, 4, 10**9):
        with monkeypatch.context() as patch:
            clocks.append(Clock(patch, stop_after))
            if stop_after < worth:
                with pytest.raises(KeyboardInterrupt):
                    run(asked(), quiet)
            else:
                assert run(asked(), quiet)["complete"]
    timed = [each for clock in clocks for each in clock.timed]
    assert len(timed) == len(set(timed)) == worth
    with monkeypatch.context() as patch:
        again = Clock(patch)
        assert run(asked(), quiet)["complete"] and not again.timed
        assert run(asked(again=True), quiet)["complete"] and len(again.timed) == worth


def test_other_inputs_begin_anew_and_keep_the_choice_until_they_are_done(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Clock(monkeypatch)
    chosen = [one["chosen"] for one in run(asked(), quiet)["kernels"]]
    found = dry_run(asked(tokens=301))["kernels"]
    assert [one["chosen"] for one in found] == chosen and not any(one["complete"] for one in found)


@pytest.mark.parametrize("stop_after", [0, 1])
def test_another_length_that_is_interrupted_loses_no_choice(
    folder: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    with monkeypatch.context() as patch:
        Clock(patch)
        before = [read(Path(one["record"])) for one in run(asked(), quiet)["kernels"]]
    with monkeypatch.context() as patch:
        Clock(patch, stop_after, factor=0.99)
        with pytest.raises(KeyboardInterrupt):
            run(asked(tokens=301), quiet)
    after = [read(folder / one.name) for one in before]
    assert [one.chosen for one in after] == [one.chosen for one in before]
    assert [one for one in after if one not in before] == after[:stop_after]


def test_another_length_whose_time_is_up_keeps_the_choice_and_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        Clock(patch)
        chosen = [one["chosen"] for one in run(asked(), quiet)["kernels"]]
    with monkeypatch.context() as patch:
        clock = Clock(patch, factor=0.99)
        patch.setattr(Workshop, "is_over", property(lambda shop: len(clock.timed) >= 1))
        data = run(asked(tokens=301), quiet)
        assert not data["complete"] and [one["chosen"] for one in data["kernels"]] == chosen
    with monkeypatch.context() as patch:
        Clock(patch, factor=0.99)
        assert all(one["chosen"] is None for one in run(asked(tokens=301), quiet)["kernels"])


def test_passes_are_compared_with_the_default_schedules(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    assert all(one["chosen"] is not None for one in run(asked(), quiet)["kernels"])
    monkeypatch.setattr(jit, "tuned", None)  # records are not looked at
    plain, *_ = passes(SMALL, clustered_qkv(SMALL, 1, 1, 300), "cpu", records=False)
    assert [step.stage.name for step in plain.steps]
    assert Oracle(SMALL, "cpu", "cpu").passes


def test_a_run_whose_time_is_up_says_so_and_keeps_what_is_there(folder: Path) -> None:
    data = run(asked(minutes=1e-9), quiet)
    assert not data["complete"] and data["check"]["right"]
    assert not any(one["tried"] for kernel in data["kernels"] for one in kernel["candidates"])
    assert data["passes"] == {"forward": {}}, "nothing differs, so nothing is compared"
    said = invoke("tune", *QUICK_FLAGS, "--minutes", "1e-9").stdout
    assert "run it again to go on" in said and "forward: every kernel has its default" in said


@pytest.mark.parametrize("text", ["{", "[" * 100_000])
def test_a_broken_record_is_made_anew(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    paths = [Path(one["record"]) for one in run(asked(), quiet)["kernels"]]
    assert {path.stat().st_mode & 0o777 for path in paths} == {paths[0].parent.stat().st_mode & 0o644}
    paths[0].write_text(text)
    assert run(asked(), quiet)["complete"] and read(paths[0]).complete


# -- the verb, and bad input -------------------------------------------------------------------


def test_the_verb_tunes_and_says_what_it_took(folder: Path) -> None:
    data = data_of("tune", *QUICK_FLAGS)
    assert data["complete"] and data["folder"] == str(folder) and data["machine"] == machine_of("cpu").to_data()
    assert list(data["passes"]) == ["forward"]
    result = invoke("tune", *QUICK_FLAGS)
    assert result.exit_code == 0 and f"{len(data['kernels'])} records in {folder}" in result.stdout
    lines = invoke("tune", *QUICK_FLAGS, "--quiet").stdout.split()
    assert lines == [one["record"] for one in data["kernels"]] and all(Path(line).is_file() for line in lines)


def test_a_dry_run_builds_and_writes_nothing(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TUNING_VARIABLE)
    data = data_of("tune", *QUICK_FLAGS, "--dry-run")
    assert data["dry_run"] and data["kernels"] and not empty_cache.exists()
    assert "would write" in invoke("tune", *QUICK_FLAGS, "--dry-run").stdout


BAD = {
    "no threads": (("--threads", "0"), ("--threads", "0")),
    "too many threads": (("--threads", "4096"), ("--threads", "1,024")),
    "no tokens": (("--tokens", "0"), ("--tokens",)),
    "more tokens than memory": (("--tokens", "16000000", "--heads", "128"), ("GiB",)),
    "no time": (("--minutes", "0"), ("--minutes",)),
    "time that is no number": (("--seconds", "nan"), ("--seconds",)),
    "a target for tests": (("--target", "c"), ("--target cpu",)),
    "two targets": (("--target", "cpu,sm90"), ("one target",)),
    "half a head": (("--heads", "0.5"), ("--heads",)),
}


@pytest.mark.parametrize(("flags", "words"), BAD.values(), ids=BAD)
def test_bad_input_is_refused_with_a_hint(folder: Path, flags: tuple[str, ...], words: tuple[str, ...]) -> None:
    expect_error(invoke("tune", *FLAGS, *flags), 2, *words, "next:")
    assert not folder.exists()


def test_a_gpu_that_is_not_here_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llsa_gen.jit.toolchain.Toolchain.can_run", lambda chain, target: (False, "no GPU here"))
    expect_error(invoke("tune", *FLAGS, "--target", "sm90"), 2, "no GPU here", "sm90", "next:")


def test_records_that_are_switched_off_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TUNING_VARIABLE, "0")
    expect_error(invoke("tune", *FLAGS, "--tokens", "40"), 2, TUNING_VARIABLE)


def test_a_place_without_room_is_found_before_anything_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(TUNING_VARIABLE, str(tmp_path / "file" / "tuning"))
    monkeypatch.setattr(Workshop, "timed", None)
    expect_error(invoke("tune", *QUICK_FLAGS), 6, "tuning record", TUNING_VARIABLE)


def test_a_full_disk_leaves_the_last_record(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = recorded(SMALL, "attend_fine", None)
    path = write(record, folder)

    def full(path: Path, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match="No space left"):
        write(replace(record, complete=False), folder)
    assert read(path) == record and [one.name for one in folder.iterdir()] == [record.name]


def test_records_lie_beside_the_kernels_where_no_folder_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv(TUNING_VARIABLE)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    assert records_dir() == tmp_path / "tuning"
