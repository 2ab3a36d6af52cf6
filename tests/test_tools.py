# SPDX-License-Identifier: Apache-2.0
"""The scripts of tools/ and .ci/."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.tree import ROOT

SCRIPTS = (".ci/run", "tools/quickstart", "tools/test")


def bash(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", *map(str, command)], env=os.environ | environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_strict_and_can_be_run(name: str) -> None:
    script = ROOT / name
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text(encoding="utf-8").splitlines()
    assert bash("-n", script).returncode == 0


def test_help_lists_the_options() -> None:
    shown = bash(ROOT / "tools/test", "--help")
    assert shown.returncode == 0
    assert {"--full", "--device"} <= set(shown.stdout.split())


def test_a_missing_value_is_refused_before_anything_runs() -> None:
    refused = bash(ROOT / "tools/test", "--device")
    assert refused.returncode != 0
    assert "--device needs cpu or cuda" in refused.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with no more in it than the environment depends on."""
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def test_an_unfit_python_is_named_and_nothing_is_made(checkout: Path) -> None:
    refused = bash("-e", checkout / "tools/environment.sh", LLSA_GEN_PYTHON="false")
    assert refused.returncode == 1
    assert "LLSA_GEN_PYTHON=false is no Python >= 3.11" in refused.stderr
    assert not (checkout / ".venv").exists()


def test_no_python_at_all_says_what_to_do(checkout: Path) -> None:
    only_bash = checkout / "bin"
    only_bash.mkdir()
    for tool in ("bash", "dirname"):
        found = shutil.which(tool)
        assert found is not None
        (only_bash / tool).symlink_to(found)
    refused = bash("-e", checkout / "tools/environment.sh", PATH=str(only_bash), LLSA_GEN_PYTHON="")
    assert refused.returncode == 1
    assert "no Python >= 3.11 found" in refused.stderr
    assert "next:" in refused.stderr
