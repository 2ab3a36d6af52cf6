# SPDX-License-Identifier: Apache-2.0
"""The verbs that write and compare: build, check, clean."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llsa_gen import codegen, manifest
from llsa_gen.catalog import CATALOG_FILE, catalogue_specs
from llsa_gen.errors import CompileError, InfeasibleError
from llsa_gen.jit import cache, records, toolchain
from llsa_gen.paths import TUNING_VARIABLE
from llsa_gen.spec import Spec
from tests.command_line import (
    SLUG,
    SMALL,
    SMALL_SLUG,
    data_of,
    expect_error,
    has_all_parts,
    invoke,
    machine,
    raises,
    shell,
)
from tests.schedules import recorded
from tests.tree import ROOT

# -- build -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one small package, compiled for the CPU."""
    folder = tmp_path_factory.mktemp("kernels") / "own"
    package = data_of("build", *SMALL, "--out", folder)["packages"][0]
    assert package["slug"] == SMALL_SLUG and package["written"]
    assert all(Path(kernel["path"]).is_file() for kernel in package["kernels"])
    return folder


def test_a_second_build_has_nothing_to_do(built: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in built.rglob("*")}
    said = invoke("build", *SMALL, "--out", built)
    assert said.exit_code == 0 and said.stderr == ""
    assert f"nothing to do: {SMALL_SLUG}, everything is built and up to date" in said.stdout
    assert f"import own.{SMALL_SLUG}" in said.stdout
    data = data_of("build", *SMALL, "--out", built)
    assert data["nothing_to_do"] and all(kernel["cached"] for kernel in data["packages"][0]["kernels"])
    assert before == {path: path.stat().st_mtime_ns for path in built.rglob("*")}


def test_a_package_of_ones_own_can_be_imported(built: Path) -> None:
    code = f"import own.{SMALL_SLUG} as package; print(package.op.spec.slug)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(built.parent), str(ROOT)]), "LLSA_GEN_BUILD": "0"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert run.stdout == f"{SMALL_SLUG}\n", run.stderr


def test_quiet_build_prints_the_slug(built: Path) -> None:
    result = invoke("build", *SMALL, "--out", built, "--quiet")
    assert (result.stdout, result.stderr) == (f"{SMALL_SLUG}\n", "")


def test_build_in_a_process_prints_one_document(built: Path) -> None:
    result = shell("build", *SMALL, "--out", built, "--json")
    assert json.loads(result.stdout)["nothing_to_do"] and result.stderr == ""


def test_writing_needs_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llsa_gen.jit.build", raises(AssertionError("compiled")))
    result = invoke("build", "--from", CATALOG_FILE, "--no-compile", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert {path.name for path in tmp_path.iterdir()} == set(catalogue_specs())
    again = data_of("build", "--from", CATALOG_FILE, "--no-compile", "--out", tmp_path)
    assert again["nothing_to_do"]


def test_a_dry_run_writes_nothing(tmp_path: Path, empty_cache: Path) -> None:
    out = tmp_path / "out"
    result = invoke("build", *SMALL, "--out", out, "--dry-run")
    assert result.exit_code == 0
    assert "would write" in result.stdout and "would compile for cpu" in result.stdout
    assert not out.exists() and not empty_cache.exists()
    data = data_of("build", *SMALL, "--out", out, "--dry-run")
    assert data["dry_run"] and not data["nothing_to_do"] and data["packages"][0]["planned"] == {"cpu": False}


def test_the_depth_of_a_build_is_chosen_first(tmp_path: Path) -> None:
    args = ("--levels", "auto", "--seq-len", 1048576, "--no-compile", "--dry-run", "--out", tmp_path)
    slug = data_of("build", *args)["packages"][0]["slug"]
    assert re.fullmatch(r"llsa_l[3-6]_b16_k8_d64_bf16", slug)


def test_an_installed_package_needs_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llsa_gen.cli.options.is_checkout", lambda: False)
    expect_error(invoke("build", "--no-compile"), 2, "--out DIR")


def test_a_missing_nvcc_is_said(tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "find_nvcc", lambda: None)
    result = invoke("build", *SMALL, "--target", "sm90", "--out", tmp_path / "out", "--quiet")
    expect_error(result, 4, "nvcc", "pip install")
    assert not (tmp_path / "out").exists()


def test_targets_that_only_a_file_names_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: Path
) -> None:
    file = tmp_path / "specs.toml"
    fields = 'levels = 1\nblock = 4\ntopk = 1\nhead_dim = 16\ndtype = "fp32"\ntargets = ["cpu", "sm90"]\n'
    file.write_text(f"[specs.small]\n{fields}")
    monkeypatch.setattr(toolchain, "describe", lambda: machine(cxx=True, nvcc=False))
    package = data_of("build", "--from", file, "--out", built)["packages"][0]
    assert {kernel["target"] for kernel in package["kernels"]} == {"cpu"}
    assert "nvcc" in package["skipped"]["sm90"]
    assert "not compiled for sm90" in invoke("build", "--from", file, "--out", built).stdout
    monkeypatch.setattr(toolchain, "describe", lambda: machine(cxx=False, nvcc=False))
    expect_error(invoke("build", "--from", file, "--out", built, "--quiet"), 4, "doctor", "--no-compile")


def test_an_infeasible_target_is_found_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = InfeasibleError("no tile fits", limit="shared memory per block", value=2, bound=1)
    monkeypatch.setattr(codegen.KernelPackage, "require_feasible", raises(error))
    expect_error(invoke("build", "--out", tmp_path / "out"), 3, "no tile fits")
    assert not (tmp_path / "out").exists()


def test_the_message_of_a_compiler_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = CompileError("g++ failed", path="kernel.cpp", compiler_output="kernel.cpp:1:1: error: expected ';'")
    monkeypatch.setattr("llsa_gen.jit.build", raises(error))
    result = invoke("build", *SMALL, "--out", tmp_path, "--quiet")
    assert result.exit_code == 4
    assert "kernel.cpp:1:1: error: expected ';'" in result.stderr


def compiler(folder: Path, refuses: str) -> Path:
    """A compiler that knows its version and refuses everything else with some words."""
    tool = folder / "compiler"
    version = "tool 1.0\nCuda compilation tools, release 13.0, V13.0.1"
    tool.write_text(
        f"#!/bin/sh\n[ \"$1\" = --version ] && echo '{version}' && exit\nprintf '%s' '{refuses}' >&2\nexit 3\n"
    )
    tool.chmod(0o755)
    return tool


@pytest.mark.usefixtures("other_tools")
@pytest.mark.parametrize(
    ("target", "variable", "name"), [("cpu", "CXX", "kernel.cpp"), ("sm90", "CUDACXX", "kernel.cu")]
)
def test_the_source_of_a_failed_build_is_kept(
    target: str, variable: str, name: str, tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = f"{name}(3): error: what is this?\n  ^"
    monkeypatch.setenv(variable, str(compiler(tmp_path, said)))
    build = ("build", *SMALL, "--target", target, "--out", tmp_path / "out")
    for _ in range(2):  # the next failure takes the place of the last one
        message = data_of(*build, exit_code=4)["error"]["message"]
        source = Path(*re.findall(r"where:   file (.*)", message))
        assert source.name == name and source.is_file() and source.parent.parent == cache.failed_dir()
        assert message.endswith(said) and has_all_parts(message.removesuffix(said))
        (command,) = re.findall(r"next:    run it again: (.*)", message)
        again = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
        assert (again.returncode, again.stderr) == (3, said)
    assert not list(cache.kernels_dir().iterdir())
    folders = len(list(cache.failed_dir().iterdir()))
    would, did = data_of("clean", "--dry-run"), data_of("clean")
    assert would["failed_builds"] == did["failed_builds"] == folders
    assert would["cache_bytes"] == did["cache_bytes"] > 0 and not cache.failed_dir().exists()


def test_a_compiler_that_died_of_ctrl_c_did_not_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*args: object, **kwargs: object) -> None:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise CompileError("g++ failed with status -2")

    monkeypatch.setattr("llsa_gen.jit.build", dies)
    result = invoke("build", *SMALL, "--out", tmp_path, "--quiet")
    assert result.exit_code == 130
    assert result.stderr.splitlines() == ["interrupted: what is finished is kept"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.fixture
def unwritable(tmp_path: Path) -> Iterator[Path]:
    """A folder that cannot be written to, not even by root."""
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    yield Path("/proc/self") if os.access(folder, os.W_OK) else folder
    folder.chmod(0o755)


def test_an_unwritable_folder_is_said(unwritable: Path) -> None:
    result = invoke("build", *SMALL, "--out", unwritable / "out", "--no-compile")
    expect_error(result, 6, str(unwritable), "--out", "  where: ", "  value: ", "  next: ")
    assert not (unwritable / "out").exists()


def test_a_file_in_the_way_is_said(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("mine")
    expect_error(invoke("build", *SMALL, "--out", blocker, "--no-compile"), 6, str(blocker))
    expect_error(invoke("build", *SMALL, "--out", blocker / "below", "--no-compile"), 6, str(blocker))
    assert blocker.read_text() == "mine" and list(tmp_path.iterdir()) == [blocker]


def test_a_cache_that_cannot_be_written_is_said(
    unwritable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLSA_GEN_CACHE_DIR", str(unwritable / "cache"))
    expect_error(invoke("build", *SMALL, "--out", tmp_path / "out", "--quiet"), 6, str(unwritable))


# -- check -------------------------------------------------------------------------------------


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A folder with two generated packages, one of them with a digest in its name."""
    folder = tmp_path / "packages"
    for flags in (SMALL, (*SMALL, "--enrichment", "none")):
        assert invoke("build", *flags, "--no-compile", "--out", folder).exit_code == 0
    return folder


def test_check_finds_nothing_in_fresh_files(packages: Path) -> None:
    data = data_of("check", "--out", packages)
    assert data["ok"] and data["findings"] == [] and len(data["checked"]) == 2
    assert invoke("check", "--out", packages, "--quiet").output == ""


def test_check_prints_the_difference_and_a_repair_that_works(packages: Path) -> None:
    for package in packages.iterdir():
        file = package / "select.py"
        file.write_text(file.read_text().replace("# SPDX", "# spdx", 1))
    result = invoke("check", "--out", packages)
    assert result.exit_code == 1
    assert "stale" in result.stdout and "-# spdx" in result.stdout and "+# SPDX" in result.stdout
    for command in re.findall(r"repair: llsa-gen (.+)", result.stdout):
        assert invoke(*command.split(), "--no-compile").exit_code == 0
    assert invoke("check", "--out", packages).exit_code == 0


def test_check_finds_missing_foreign_and_broken_files(packages: Path) -> None:
    first, second = sorted(packages.iterdir())
    (first / "select.py").unlink()
    (first / "extra.py").write_text("")
    (second / manifest.MANIFEST).write_text("{")
    found = data_of("check", "--out", packages, exit_code=1)["findings"]
    assert sorted(finding["problem"] for finding in found) == ["broken", "missing", "orphan"]
    assert all(finding["repair"] for finding in found)


def test_check_finds_folders_inside_packages(packages: Path) -> None:
    first, second = sorted(packages.iterdir())
    (first / "old").mkdir()
    (first / "old" / "select.py").write_text("")
    (second / "__pycache__").mkdir()  # what an import leaves is nobody's mistake
    (found,) = data_of("check", "--out", packages, exit_code=1)["findings"]
    assert (found["path"], found["problem"]) == (str(first / "old"), "orphan")
    assert data_of("check", first.name, "--out", packages, exit_code=1)["findings"] == [found]
    subprocess.run(["sh", "-c", found["repair"]], check=True)
    assert data_of("check", "--out", packages)["ok"]


def test_check_can_be_asked_about_single_packages(packages: Path) -> None:
    (packages / SMALL_SLUG / "select.py").unlink()
    (other,) = (path.name for path in packages.iterdir() if path.name != SMALL_SLUG)
    assert data_of("check", other, "--out", packages)["checked"] == [other]
    assert data_of("check", SMALL_SLUG, "--out", packages, exit_code=1)["findings"]
    assert data_of("check", "pixel_dit", "--out", packages, exit_code=1)["findings"][0]["problem"] == "missing"


def test_check_finds_text_that_depends_on_the_process(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llsa_gen.cli.rerender.digests_elsewhere", lambda specs, seed: dict.fromkeys(specs, str(seed)))
    found = data_of("check", "--out", packages, exit_code=1)["findings"]
    assert {finding["problem"] for finding in found} == {"unstable"} and "PYTHONHASHSEED=1" in found[0]["diff"]


def test_check_of_nothing_is_a_mistake(tmp_path: Path) -> None:
    expect_error(invoke("check", "--out", tmp_path / "nowhere"), 2, "nowhere")
    expect_error(invoke("check", "--out", tmp_path), 2, "no generated packages")
    expect_error(invoke("check", "pixel_dot"), 2, "pixel_dot")


# -- clean -------------------------------------------------------------------------------------


@pytest.fixture
def entries(empty_cache: Path) -> Path:
    """A cache that holds a kernel of two specs each."""

    def make(slug: str) -> Callable[[Path], dict[str, Any]]:
        def fill(folder: Path) -> dict[str, Any]:
            (folder / cache.LIBRARY).write_bytes(b"x" * 1000)
            return {"slug": slug, "target": "cpu"}

        return fill

    for slug in (SLUG, SMALL_SLUG):
        cache.ensure(slug, make(slug))
    return empty_cache


def test_clean_says_how_many_bytes_it_frees(entries: Path) -> None:
    would = data_of("clean", "--dry-run")
    assert would["cache_entries"] == 2 and would["cache_bytes"] >= 2000 and len(cache.entries()) == 2
    did = data_of("clean")
    assert did["cache_bytes"] >= would["cache_bytes"] and cache.entries() == ()
    assert data_of("clean")["cache_bytes"] == 0
    assert "0 bytes" in invoke("clean").stdout


def test_clean_leaves_tuning_records_and_says_where_unless_told(
    entries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TUNING_VARIABLE, str(tmp_path))
    spec = Spec(levels=1, block=4, topk=1, head_dim=16, dtype="fp32")
    record = records.write(recorded(spec, "attend_fine", None), tmp_path)
    broken = record.with_name(record.name.replace("attend_fine", "coarsen"))
    broken.write_text("{")
    mine = tmp_path / "mine.json"
    mine.write_text("{}")
    assert f"2 tuning records stay in {tmp_path}" in invoke("clean").stdout
    would = data_of("clean", "--tuning", "--dry-run")
    assert (would["tuning_records"], would["tuning_left"]) == (2, 0) and record.is_file()
    assert data_of("clean", "--tuning") == would | {"dry_run": False}
    assert sorted(tmp_path.glob("*.json")) == [mine]
    assert "tuning" not in invoke("clean").stdout


def test_clean_refuses_records_of_one_spec_and_such_as_are_switched_off(
    entries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expect_error(invoke("clean", "--tuning", "--spec", SLUG), 2, "leave --spec out")
    monkeypatch.setenv(TUNING_VARIABLE, "off")
    expect_error(invoke("clean", "--tuning"), 2, "switched off")
    assert len(cache.entries()) == 2


@pytest.mark.parametrize("name", [SLUG, "pixel_dit"])
def test_clean_of_one_spec_leaves_the_others(name: str, entries: Path) -> None:
    assert data_of("clean", "--spec", name)["cache_entries"] == 1
    assert [entry.slug for entry in cache.entries()] == [SMALL_SLUG]


def test_clean_of_an_unknown_name_is_a_mistake(entries: Path) -> None:
    expect_error(invoke("clean", "--spec", "pixel_dot"), 2, "did you mean 'pixel_dit'")
    assert data_of("clean", "--spec", "llsa_l3_b16_k8_d64_bf16")["cache_entries"] == 0
    assert len(cache.entries()) == 2


def test_clean_removes_packages_but_never_the_catalogue(packages: Path, entries: Path) -> None:
    assert invoke("build", "--spec", "pixel_dit", "--no-compile", "--out", packages).exit_code == 0
    (packages / "mine").mkdir()
    (packages / "mine" / manifest.MANIFEST).write_text('{"slug": "somebody else"}')
    (packages / "link").symlink_to(packages / SMALL_SLUG)
    before = {path.name for path in packages.iterdir() if path.name.startswith("llsa_")}
    would = data_of("clean", "--generated", "--out", packages, "--dry-run")
    assert {Path(path).name for path in would["packages"]} == before - {SLUG}
    assert {path.name for path in packages.iterdir()} == before | {"mine", "link"}
    did = data_of("clean", "--generated", "--out", packages)
    assert did["package_bytes"] == would["package_bytes"] > 0
    assert {path.name for path in packages.iterdir()} == {SLUG, "mine", "link"}


def test_clean_keeps_generated_packages_unless_told(packages: Path, entries: Path) -> None:
    expect_error(invoke("clean", "--out", packages), 2, "--generated")
    before = sorted(packages.rglob("*"))
    assert invoke("clean").exit_code == 0 and sorted(packages.rglob("*")) == before
