# SPDX-License-Identifier: Apache-2.0
"""Generated packages: the same bytes everywhere, written whole or not at all, and checked against what is there."""

from __future__ import annotations

import ast
import errno
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from hypothesis import given
from jinja2 import Environment
from jinja2.meta import find_referenced_templates

from llsa_gen import manifest
from llsa_gen.codegen import Finding, check, heading, render, write
from llsa_gen.codegen.write import LEFTOVER_AGE
from llsa_gen.errors import OutputError, StaleError, TemplateError, UnsupportedError
from llsa_gen.lowering import variants_of
from llsa_gen.spec import Spec
from llsa_gen.targets import list_targets
from tests.strategies import budget, specs
from tests.tree import ROOT

SMALL = Spec(levels=2, block=4, topk=2, head_dim=16, dtype="fp32")
OTHER = Spec(levels=3, block=8, topk=(4, 2, 1), head_dim=24, value_dim=40, dtype="fp16", enrichment="exclude_refined")
SPECS = {"small": SMALL, "other": OTHER}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The small package on disk."""
    return write(render(SMALL), tmp_path).path


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# -- rendering ---------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_same_bytes_in_every_process(spec: Spec) -> None:
    program = f"""
import json, sys
from llsa_gen.codegen import render
from llsa_gen.spec import Spec
print(json.dumps(dict(render(Spec.from_fields({spec.to_fields()!r})).files)))
"""
    said = set()
    for seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT), "TZ": f"UTC{seed}", "LANG": "C"}
        run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
        said.add(run.stdout)
    assert len(said) == 1


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_files_are_headed_and_are_python(spec: Spec) -> None:
    package = render(spec)
    for name, text in package.files.items():
        assert text.endswith("\n") and not text.endswith("\n\n") and "\r" not in text
        if name.endswith(".py"):
            compile(text, name, "exec")
            head = text.splitlines()[:5]
            assert head[0] == "# SPDX-License-Identifier: Apache-2.0" and "do not edit" in head[1]
            assert spec.slug in head[3] and f"llsa-gen build --spec {spec.slug}" in head[4]
            assert not any(line != line.rstrip() for line in text.splitlines())


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("enrichment", ["overlap", "exclude_refined", "none"])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_cpu_kernels_use_what_they_import_and_define(levels: int, enrichment: str, dtype: str) -> None:
    for name, text in render(replace(SMALL, levels=levels, enrichment=enrichment, dtype=dtype)).files.items():
        if name.startswith("cpu_"):
            tree = ast.parse(text)
            used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
            imported = {word.asname or word.name for line in tree.body for word in getattr(line, "names", [])}
            targets = [target for line in tree.body if isinstance(line, ast.Assign) for target in line.targets]
            defined = {node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)}
            assert imported | defined <= used, name


@pytest.mark.parametrize("shared", ["segments", "views"])
def test_the_digest_of_a_template_covers_what_it_builds_on(
    shared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digests() -> dict[str, str]:
        heading.template_digest.cache_clear()
        return {name: heading.template_digest(name) for name in ("attend", "attend_grad_q", "coarsen")}

    before = digests()
    shutil.copytree(ROOT / "templates", tmp_path / "templates")
    monkeypatch.setattr(heading, "templates_dir", lambda: tmp_path / "templates")
    assert digests() == before
    with (tmp_path / "templates" / heading.FOLDER / f"{shared}.py.jinja").open("a") as text:
        text.write("# more\n")
    after = digests()
    monkeypatch.undo()
    assert digests() == before
    assert {name for name in before if before[name] != after[name]} == {"attend", "attend_grad_q"}


def test_the_templates_that_a_template_names_are_those_that_jinja_finds() -> None:
    for path in (ROOT / "templates").rglob("*.jinja"):
        text = path.read_text(encoding="utf-8")
        assert sorted(heading.named_in(text)) == sorted(map(str, find_referenced_templates(Environment().parse(text))))


def test_targets_and_the_spelling_of_a_spec_change_nothing() -> None:
    same = Spec(levels=2, block=4, topk="2 * 1", head_dim=16, dtype="fp32", targets=("cpu", "sm90"), weight="c * 1")
    assert dict(render(same).files) == dict(render(SMALL).files)


@given(specs(max_levels=3))
@budget(20)
def test_kernels_of_a_target_come_in_the_order_of_its_plans(spec: Spec) -> None:
    package = render(spec)
    for target in list_targets():
        variants = (variant for plan in package.plans_for(target) for variant in variants_of(plan))
        keys = dict.fromkeys(key for variant in variants for key in variant.kernels())
        assert [kernel.key for kernel in package.kernels_for(target)] == list(keys)


def test_gradients_of_a_spec_without_them_are_refused() -> None:
    package = render(Spec(gradient=False))
    assert not any("grad" in name for name in package.files)
    with pytest.raises(UnsupportedError, match=r"(?s)built without gradients.*allowed: .*next: "):
        package.plan("cpu", "backward")


# -- writing -----------------------------------------------------------------------------------


def test_writing_twice_touches_nothing(tmp_path: Path) -> None:
    first = write(render(SMALL), tmp_path)
    assert first.path == tmp_path / SMALL.slug and not first.unchanged
    assert set(first.written) == set(render(SMALL).files) == names(first.path)
    before = contents(first.path), first.path.stat().st_mtime_ns
    again = write(render(SMALL), tmp_path)
    assert again.unchanged and again.written == ()
    assert before == (contents(first.path), first.path.stat().st_mtime_ns)


def test_only_what_changed_is_touched(package: Path) -> None:
    before = contents(package)
    (package / "select.py").write_text("edited")
    assert write(render(SMALL), package.parent).written == ("select.py",)
    after = contents(package)
    assert {name for name in before if before[name] != after[name]} == {"select.py"}
    assert before["select.py"][0] == after["select.py"][0]


def test_a_dry_run_writes_nothing(tmp_path: Path, package: Path) -> None:
    (package / "select.py").write_text("edited")
    before = contents(package)
    assert write(render(SMALL), tmp_path, dry_run=True).written == ("select.py",)
    assert contents(package) == before
    elsewhere = tmp_path / "elsewhere"
    assert set(write(render(SMALL), elsewhere, dry_run=True).written) == set(render(SMALL).files)
    assert not elsewhere.exists()


def test_files_of_another_plan_go_and_files_of_a_person_stay(package: Path) -> None:
    (package / "attend_old.py").write_text("left over")
    (package / "notes.txt").write_text("mine")
    (package / "plots").mkdir()
    (package / "plots" / "speed.py").write_text("mine too")
    assert write(render(SMALL), package.parent).written == ("attend_old.py",)
    assert names(package) == {*render(SMALL).files, "notes.txt", "plots"}
    assert (package / "notes.txt").read_text() == "mine"
    assert (package / "plots" / "speed.py").read_text() == "mine too"


Failure = Callable[[pytest.MonkeyPatch], None]


def _raise(error: BaseException) -> Callable[..., None]:
    def raiser(*arguments: object, **options: object) -> None:
        raise error

    return raiser


def _second_rename_fails(error: BaseException) -> Failure:
    """The old package is moved away, and the new one does not come into its place."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        real, calls = Path.rename, []

        def rename(path: Path, target: Path) -> Path:
            calls.append(target)
            if len(calls) == 2:
                raise error
            return real(path, target)

        patch.setattr(Path, "rename", rename)

    return apply


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
READ_ONLY = OSError(errno.EROFS, os.strerror(errno.EROFS))
FAILURES: dict[str, tuple[Failure, type[BaseException], str]] = {
    "full disk": (lambda patch: patch.setattr(Path, "write_bytes", _raise(FULL)), OutputError, "No space left"),
    "read only": (
        lambda patch: patch.setattr(tempfile, "mkdtemp", _raise(READ_ONLY)),
        OutputError,
        "Read-only file system",
    ),
    "rename": (_second_rename_fails(FULL), OutputError, "No space left"),
    "interrupt": (
        lambda patch: patch.setattr(Path, "write_bytes", _raise(KeyboardInterrupt())),
        KeyboardInterrupt,
        "^$",
    ),
    "late interrupt": (_second_rename_fails(KeyboardInterrupt()), KeyboardInterrupt, "^$"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_write_that_fails_leaves_what_was_there(failure: str, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    apply, error, words = FAILURES[failure]
    (package / "select.py").write_text("edited")
    before = contents(package)
    with monkeypatch.context() as patch:
        apply(patch)
        with pytest.raises(error, match=words) as caught:
            write(render(SMALL), package.parent)
    if isinstance(caught.value, OutputError):
        assert "where:" in str(caught.value) and "--out DIR" in str(caught.value)
    assert contents(package) == before
    assert names(package.parent) == {SMALL.slug}, "no staging folder stays behind"


def test_a_file_in_the_place_of_the_package_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / SMALL.slug).write_text("mine")
    with pytest.raises(OutputError, match="something else than a folder"):
        write(render(SMALL), tmp_path)
    assert (tmp_path / SMALL.slug).read_text() == "mine"
    with pytest.raises(OutputError):
        write(render(SMALL), tmp_path / SMALL.slug)


def test_what_killed_writes_left_goes_when_it_is_old(tmp_path: Path) -> None:
    old, fresh = (tmp_path / f".{SMALL.slug}.{name}" for name in ("old", "fresh"))
    for folder in (old, fresh):
        folder.mkdir()
    past = time.time() - LEFTOVER_AGE - 60
    os.utime(old, (past, past))
    write(render(SMALL), tmp_path)
    assert not old.exists() and fresh.exists()


# -- the manifest and checking -----------------------------------------------------------------


def test_the_manifest_names_every_file(package: Path) -> None:
    found = manifest.read(package)
    assert found.slug == SMALL.slug and Spec.from_fields(found.spec) == SMALL
    assert {*found.files, manifest.MANIFEST} == names(package)
    assert {kernel["name"] for kernel in found.kernels} == {kernel.name for kernel in render(SMALL).kernels}


def test_a_manifest_of_another_spec_is_broken(package: Path) -> None:
    path = package / manifest.MANIFEST
    path.write_text(path.read_text().replace('"block": 4', '"block": 8', 1))
    with pytest.raises(StaleError, match=r"(?s)missing or broken.*another name.*next: +generate it again"):
        manifest.read(package)


def findings(folder: Path, **specs: Spec) -> dict[str, Finding]:
    found = check(folder, specs)
    assert len({finding.path for finding in found}) == len(found)
    return {str(finding.path.relative_to(folder)): finding for finding in found}


def test_nothing_is_found_where_all_is_well(package: Path) -> None:
    (package / "__pycache__").mkdir()
    assert findings(package.parent, small=SMALL) == {}
    assert findings(package.parent) == {}, "a package outside the catalogue is held against its own manifest"


def test_an_edited_file_is_shown_as_a_diff(package: Path) -> None:
    path = package / "select.py"
    path.write_text(path.read_text().replace("import", "import  "))
    for given_specs in ({"small": SMALL}, {}):
        (name, finding), *others = findings(package.parent, **given_specs).items()
        assert name == f"{SMALL.slug}/select.py" and not others
        assert finding.problem == "stale" and finding.repair == f"llsa-gen build --spec {SMALL.slug}"
        assert "--- select.py (there)\n+++ select.py (generated)\n" in finding.diff
        assert any(line.startswith("-import  ") for line in finding.diff.splitlines())


def test_missing_files_and_packages(package: Path) -> None:
    (package / "select.py").unlink()
    found = findings(package.parent, small=SMALL, other=OTHER)
    assert {finding.problem for finding in found.values()} == {"missing"}
    assert f"{SMALL.slug}/select.py" in found
    assert sum(name.startswith(OTHER.slug) for name in found) == len(render(OTHER).files)


def test_orphans(package: Path) -> None:
    (package / "attend_old.py").write_text("")
    (package / "folder").mkdir()
    (package / "__pycache__").mkdir()
    (package.parent / "stray.txt").write_text("")
    found = findings(package.parent, small=SMALL)
    assert set(found) == {f"{SMALL.slug}/attend_old.py", f"{SMALL.slug}/folder", "stray.txt"}
    assert found[f"{SMALL.slug}/folder"].repair.startswith("rm -r ")
    assert {finding.problem for finding in found.values()} == {"orphan"}


def test_a_package_without_a_sound_manifest_is_broken(package: Path) -> None:
    (package / manifest.MANIFEST).write_text("{")
    finding = findings(package.parent)[SMALL.slug]
    assert finding.problem == "broken" and "missing or broken" in finding.diff
    assert findings(package.parent, small=SMALL)[f"{SMALL.slug}/{manifest.MANIFEST}"].problem == "stale"


def test_a_package_that_cannot_be_generated_any_more_is_broken(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(spec: Spec) -> None:
        raise TemplateError("the template is gone")

    monkeypatch.setattr(import_module("llsa_gen.codegen.check"), "render", refuse)
    assert findings(package.parent)[SMALL.slug].problem == "broken"
