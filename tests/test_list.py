# SPDX-License-Identifier: Apache-2.0
"""The verb list, where tuning records lie beside what is built."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llsa_gen import jit
from llsa_gen.catalog import catalogue
from llsa_gen.codegen import render
from llsa_gen.errors import StaleError
from llsa_gen.jit import machine_of
from llsa_gen.jit.records import write
from llsa_gen.jit.tuned import machines_on_record
from llsa_gen.paths import TUNING_VARIABLE
from tests.command_line import data_of, raises
from tests.schedules import other_schedule, recorded
from tests.tree import ROOT

MAIN = "from llsa_gen.cli import main; main()"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of records, named."""
    monkeypatch.setenv(TUNING_VARIABLE, str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("threads", [None, 1023])
def test_a_list_with_records_imports_no_torch_and_hides_nothing(folder: Path, threads: int | None) -> None:
    spec = next(iter(catalogue().values())).spec
    machine = replace(machine_of("cpu"), threads=threads or machine_of("cpu").threads)
    name = next(kernel.name for kernel in render(spec).kernels_for("cpu") if kernel.key.kind == "attend")
    is_built = spec.slug, jit.built(spec, "cpu")
    path = write(recorded(spec, name, other_schedule(spec, name), machine), folder)
    assert [one.digest for one in machines_on_record(render(spec), "cpu")] == [machine.digest]
    for _ in range(2):
        report = "atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr))"
        program = f"import atexit, sys; {report}; sys.argv[1:] = ['list', '--json']; {MAIN}"
        found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
        assert (found.returncode, found.stderr.split()) == (0, ["False"])
        assert is_built in ((row["slug"], "cpu" in row["built"]) for row in json.loads(found.stdout)["specs"])
        path.write_text("{")


def test_a_target_whose_records_are_refused_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jit, "built_isas", raises(StaleError("a tuning record is cut short")))
    monkeypatch.setattr(jit, "built", lambda spec, target: True)
    assert all(row["built"] and "cpu" not in row["built"] and not row["isas"] for row in data_of("list")["specs"])
