# SPDX-License-Identifier: Apache-2.0
"""The long searches: their specs cover all pairs, they find, shrink and save a fault, and they say what they need."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llsa_gen.errors import InputError
from llsa_gen.ir import names
from llsa_gen.ir.meanings import MEANINGS
from llsa_gen.ir.meanings.state import State
from llsa_gen.ir.types import Stage
from llsa_gen.spec import Spec
from tests.strategies import budget
from tools import fuzz, soak
from tools.campaign.cases import Case, Failure, cases
from tools.campaign.checks import CHECKS, KERNEL_SPECS
from tools.campaign.grid import FIELDS, PLAN_CHECKS, case_of, spec_of, turns
from tools.campaign.pairs import all_pairs, covering, pairs_of
from tools.campaign.run import attempt

ROWS = covering(FIELDS)
FIVE_PARTS = ("  where:   ", "  value:   ", "  allowed: ", "  next:    ")


@pytest.fixture(autouse=True)
def _threads() -> object:
    """The tools compute on one thread; what runs after them does not."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# -- all pairs ------------------------------------------------------------------------------------


@budget(30)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=6), st.integers(0, 99))
def test_all_pairs_are_covered_by_few_rows(widths: list[int], seed: int) -> None:
    fields = {f"field {place}": tuple(range(width)) for place, width in enumerate(widths)}
    rows = covering(fields, seed)
    assert set().union(*map(pairs_of, rows)) == all_pairs(fields)
    first, second = sorted(widths)[-2:]
    assert first * second <= len(rows) <= 2 * first * second + len(widths)
    assert covering(fields, seed) == rows


def test_the_specs_of_a_soak_cover_all_pairs_of_values() -> None:
    assert set().union(*map(pairs_of, ROWS)) == all_pairs(FIELDS)
    assert 50 <= len(ROWS) <= 60
    assert len({spec_of(row).slug for row in ROWS}) >= 45


@pytest.mark.parametrize("row", ROWS, ids=lambda row: spec_of(row).slug)
def test_a_row_becomes_the_case_that_it_names(row: dict[str, object]) -> None:
    for seed in range(5):
        case = case_of(row, spec_of(row), seed)
        block = case.spec.block
        right = {
            "one token": case.length == 1,
            "less than a block": 1 < case.length < block,
            "whole blocks": case.length % block == 0,
            "one token more": case.length % block == 1,
            "anything": case.length > block,
        }
        assert right[str(row["length"])]
        assert (case.inputs, case.lists, case.spec.dtype) == (row["inputs"], row["lists"], row["dtype"])
        assert case == case_of(row, spec_of(row), seed)


def test_every_row_meets_every_check_and_kernels_have_their_share() -> None:
    first = list(islice(turns(), 2 * len(ROWS) * 8 // 7))
    plans = [(check, case.spec.slug) for check, case in first if check in PLAN_CHECKS]
    assert set(plans) >= {(check, spec_of(row).slug) for row in ROWS for check in PLAN_CHECKS}
    assert [check for check, _ in first].count("kernel_gradients") == len(plans) // 7
    assert all(check != "kernel_gradients" for check, _ in islice(turns(0, 0), 300))
    few = [case.spec.slug for check, case in islice(turns(0, 3), 300) if check == "kernel_gradients"]
    assert few[:3] == few[3:6] == [spec_of(row).slug for row in ROWS[:3]]


def test_in_a_skewed_case_every_row_selects_one_block() -> None:
    row = next(row for row in ROWS if row["inputs"] == "skewed")
    case = Case(spec_of({**row, "topk": 1, "levels": 1, "block": 8}), 1, 1, 100, "skewed", "selected", 5, 0.25)
    (entries,) = case.idx()
    assert len(set(entries.flatten().tolist())) == 1


# -- a small portion ------------------------------------------------------------------------------


def test_a_small_soak(tmp_path: Path, full: bool) -> None:
    wanted = 2000 if full else 2 * len(ROWS)
    arguments = ["--comparisons", str(wanted), "--kernels", "0", "--seed", "77", "--out", str(tmp_path)]
    assert soak.main(arguments) == 0
    summary = json.loads((tmp_path / "soak.json").read_text(encoding="utf-8"))
    assert summary["comparisons"] == wanted and summary["failures"] == 0
    assert set(summary["by_check"]) == set(PLAN_CHECKS) and summary["pairs_covered"] == len(all_pairs(FIELDS))
    assert list((tmp_path / "failures").iterdir()) == []


@pytest.mark.parametrize("spec", KERNEL_SPECS[:2], ids=lambda spec: spec.slug)
def test_a_few_kernel_comparisons(spec: Spec) -> None:
    of_spec = (case_of(row, spec, 3) for row in ROWS[:12])
    assert [attempt("kernel_gradients", case) for case in of_spec] == [None] * 12


@pytest.mark.parametrize("check", CHECKS)
@given(data=st.data())
@budget(4)
def test_every_check_holds(check: str, data: st.DataObject) -> None:
    is_of_kernels = check.startswith("kernel")  # few kernels are compiled here
    CHECKS[check].run(data.draw(cases(st.just(KERNEL_SPECS[0])) if is_of_kernels else CHECKS[check].drawn))


# -- a fault is found -----------------------------------------------------------------------------


def delta_without_lse(stage: Stage, state: State) -> None:
    """A fault: the gradient of the log-sum-exps is forgotten."""
    o, o_grad, _ = (state.values[name].to(state.compute) for name in stage.inputs)
    state.values[names.DELTA] = (o * o_grad).sum(-1)


def saved(out: Path) -> list[Path]:
    return sorted((out / "failures").iterdir())


def test_a_fault_is_found_made_small_saved_and_seen_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--minutes", "0.5", "--seed", "1", "--only", "plan_gradients_fp64", "--out", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setitem(MEANINGS, "delta", delta_without_lse)
        assert fuzz.main(arguments) == 1
        (path,) = saved(tmp_path)
        shown = capsys.readouterr().out
        assert f"again: python tools/fuzz.py --replay {path}" in shown
        failure = Failure.load(path)
        assert failure.check == "plan_gradients_fp64" and failure.error.startswith("AssertionError: q_grad: distance")
        case = failure.case
        assert (case.batch, case.heads, case.spec.levels, case.spec.block) == (1, 1, 1, 4) and case.length <= 8
        assert fuzz.main(["--replay", str(path)]) == 1
    assert fuzz.main(["--replay", str(path)]) == 0
    assert "now:  holds" in capsys.readouterr().out
    assert fuzz.main(["--minutes", "0.03", *arguments[2:]]) == 0
    assert (tmp_path / "examples" / "plan_gradients_fp64").is_dir()


def test_a_soak_saves_what_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MEANINGS, "delta", delta_without_lse)
    assert soak.main(["--comparisons", "3", "--kernels", "0", "--out", str(tmp_path)]) == 1
    assert json.loads((tmp_path / "soak.json").read_text(encoding="utf-8"))["failures"] == len(saved(tmp_path)) > 0
    assert fuzz.main(["--replay", str(saved(tmp_path)[0])]) == 1


@budget(25)
@given(cases())
def test_a_failure_comes_back_from_its_file(case: Case) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        failure = Failure("plan_selects", case, "AssertionError: wrong")
        assert Failure.load(failure.save(Path(folder))) == failure


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "arguments", "status"),
    [
        (fuzz, ("--minutes", "0"), 2),
        (fuzz, ("--minutes", "-3"), 2),
        (fuzz, ("--minutes", "nan"), 2),
        (fuzz, ("--minutes", "inf"), 2),
        (fuzz, ("--only", "plan_select"), 2),
        (fuzz, ("--seed", "-1"), 2),
        (fuzz, ("--replay", "missing.json"), 2),
        (soak, ("--comparisons", "0"), 2),
        (soak, ("--kernels", "999"), 2),
        (soak, ("--seed", "-1"), 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_options(tool: object, arguments: tuple[str, ...], status: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(list(arguments)) == status  # type: ignore[attr-defined]  # one of the two scripts
    message = capsys.readouterr().err
    assert all(part in message for part in FIVE_PARTS), message


@pytest.mark.parametrize("tool", [fuzz, soak], ids=["fuzz", "soak"])
def test_a_folder_that_cannot_be_written(tool: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert tool.main(["--out", str(tmp_path / "file" / "out")]) == 6  # type: ignore[attr-defined]  # as above
    message = capsys.readouterr().err
    assert all(part in message for part in FIVE_PARTS), message


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"check": "plan_selects", "case": {}, "error": ""}', "\x00"])
def test_a_file_that_holds_no_failure(content: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match="holds no failure"):
        Failure.load(path)


@pytest.mark.parametrize("tool", [fuzz, soak], ids=["fuzz", "soak"])
def test_help(tool: object, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        tool.main(["--help"])  # type: ignore[attr-defined]  # as above
    assert ended.value.code == 0
    assert "Exit status" in capsys.readouterr().out.replace("\n", " ")
