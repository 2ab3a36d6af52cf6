# SPDX-License-Identifier: Apache-2.0
"""What is handed to others: the wheel and the source archive, what they need, and what git keeps."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable
from email import message_from_bytes
from itertools import chain
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import llsa_gen
from llsa_gen.catalog import catalogue_specs
from tests.tree import FOLDERS, ROOT, files_below

AD_HOC = "llsa_l1_b8_k3_d32_fp32"
SLUG = "llsa_l2_b16_k8_d64_fp32"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXACT = {"apache-tvm", "apache-tvm-ffi", "tilelang"}


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command and return what it printed; its errors are the message of a failure."""
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build(kind: str, source: Path, out: Path) -> Path:
    """Build a wheel or an sdist with the backend itself, which needs no network and no second environment."""
    run(sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", out, cwd=source)
    (archive,) = out.iterdir()
    return archive


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout in which somebody built a spec that is not in the catalogue."""
    assert AD_HOC not in catalogue_specs()
    copy = tmp_path_factory.mktemp("checkout")
    for name in (*FOLDERS, "generated"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
    (copy / "generated" / AD_HOC).mkdir(parents=True, exist_ok=True)
    (copy / "generated" / AD_HOC / "__init__.py").touch()
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for ``sys.path`` with nothing but the wheel in it."""
    target = tmp_path_factory.mktemp("site")
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps")
    run(*pip, "--target", target, wheel, cwd=target)
    return target


def entries(wheel: Path) -> list[PurePosixPath]:
    with zipfile.ZipFile(wheel) as archive:
        return [PurePosixPath(name) for name in archive.namelist()]


def dist_info(wheel: Path, name: str) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(f"llsa_gen-{llsa_gen.__version__}.dist-info/{name}")


def test_wheel_holds_one_top_level_package(wheel: Path) -> None:
    tops = {entry.parts[0] for entry in entries(wheel)}
    assert tops == {"llsa_gen", f"llsa_gen-{llsa_gen.__version__}.dist-info"}


def test_wheel_holds_the_package_and_all_templates(wheel: Path) -> None:
    names = set(map(str, entries(wheel)))
    package = {str(path.relative_to(ROOT)) for path in files_below(ROOT / "llsa_gen")}
    templates = {f"llsa_gen/_{path.relative_to(ROOT)}" for path in files_below(ROOT / "templates")}
    assert templates
    assert package | templates <= names
    assert {"llsa_gen/py.typed", "llsa_gen/catalog.toml"} <= names


def test_wheel_holds_the_catalogue_and_no_other_generated_code(wheel: Path) -> None:
    found = {entry.parts[2] for entry in entries(wheel) if entry.parts[1] == "_generated"}
    assert found == set(catalogue_specs())


def test_wheel_says_what_it_is(wheel: Path) -> None:
    metadata = message_from_bytes(dist_info(wheel, "METADATA"))
    assert metadata["Version"] == llsa_gen.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert b"llsa-gen = llsa_gen.cli:main" in dist_info(wheel, "entry_points.txt")
    assert b"Apache License" in dist_info(wheel, "licenses/LICENSE")


def test_wheel_of_the_source_archive_is_the_same(source: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build("sdist", source, tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    again = build("wheel", tmp_path / f"llsa_gen-{llsa_gen.__version__}", tmp_path / "wheel")
    assert sorted(entries(again)) == sorted(entries(wheel))


RENDER = f"""
import json
import llsa_gen
from llsa_gen.codegen import render
from llsa_gen.catalog import catalogue_specs
files = dict(render(catalogue_specs()[{SLUG!r}]).files)
print(json.dumps({{"package": llsa_gen.__file__, "files": {{str(name): text for name, text in files.items()}}}}))
"""

LOAD = f"""
import llsa_gen
assert llsa_gen.load({SLUG!r}) is not None
print(llsa_gen.__file__)
"""


def test_installed_package_renders_what_the_checkout_renders(installed: Path, tmp_path: Path) -> None:
    here = json.loads(run(sys.executable, "-c", RENDER, cwd=ROOT, PYTHONPATH=str(ROOT)))
    there = json.loads(run(sys.executable, "-c", RENDER, cwd=tmp_path, PYTHONPATH=str(installed)))
    assert Path(there["package"]).is_relative_to(installed)
    assert there["files"]
    assert there["files"] == here["files"]


def test_installed_package_loads_an_op_of_the_catalogue(installed: Path, tmp_path: Path) -> None:
    package = run(sys.executable, "-c", LOAD, cwd=tmp_path, PYTHONPATH=str(installed)).splitlines()[-1]
    assert Path(package).is_relative_to(installed)


# -- requirements ---------------------------------------------------------------------------------


def requirements() -> Iterable[Requirement]:
    yield from map(Requirement, chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()))


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


def test_constraints_are_plain_pins() -> None:
    assert all(re.fullmatch(r"[0-9a-z.]+", version) for version in constraints().values()), "no +cpu and no hashes"


def test_constraints_pin_a_version_that_every_requirement_allows() -> None:
    pins = constraints()
    for requirement in requirements():
        if requirement.name != PROJECT["name"]:
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), str(requirement)


def test_compilers_are_pinned_exactly() -> None:
    pinned = {one.name: str(one.specifier) for one in map(Requirement, PROJECT["dependencies"]) if one.name in EXACT}
    assert pinned == {name: f"=={constraints()[name]}" for name in EXACT}


# -- git ------------------------------------------------------------------------------------------


def test_git_keeps_the_catalogue_and_ignores_other_builds() -> None:
    lines = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line.startswith("!")]
    assert kept == [f"!/generated/{slug}/" for slug in sorted(catalogue_specs())]
    assert "/generated/*" in lines[: lines.index(kept[0])]
