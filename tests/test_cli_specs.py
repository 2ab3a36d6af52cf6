# SPDX-License-Identifier: Apache-2.0
"""The verbs that only look: where a spec comes from, plan, list, doctor, demo."""

from __future__ import annotations

import errno
import re
import sys
from pathlib import Path

import pytest

from llsa_gen import codegen
from llsa_gen.catalog import CATALOG_FILE, catalogue, catalogue_specs
from llsa_gen.cli.options import expand_targets
from llsa_gen.cli.output import format_bytes
from llsa_gen.errors import LlsaError
from llsa_gen.jit import toolchain
from llsa_gen.lowering import PASSES
from llsa_gen.paths import CACHE_VARIABLE, catalogue_dir
from llsa_gen.spec import Spec
from llsa_gen.targets import TARGET_NAMES
from tests.command_line import AUTO_TABLE, SLUG, SMALL, data_of, expect_error, invoke, machine, raises
from tests.tree import ROOT

# -- where a spec comes from -------------------------------------------------------------------


def spec_of(*args: object) -> Spec:
    """The spec behind flags, its depth chosen."""
    packages = data_of("build", *args, "--no-compile", "--dry-run")["packages"]
    assert len(packages) == 1
    return Spec.from_fields(packages[0]["spec"])


def test_flags_alone_start_from_the_defaults() -> None:
    assert spec_of() == Spec()
    given = (
        "--levels",
        3,
        "--k",
        "8, 4,2",
        "--head-dim",
        128,
        "--value-dim",
        96,
        "--dtype",
        "fp16",
        "--weight",
        "b**l",
    )
    assert spec_of(*given, "--target", "cpu,sm90", "--target", "cpu") == Spec(
        levels=3, topk=(8, 4, 2), head_dim=128, value_dim=96, dtype="fp16", weight="b**l", targets=("cpu", "sm90")
    )
    assert spec_of("--topk", "max(4, 16 // 2**l)") == Spec(topk=(8, 4))


def test_a_name_or_a_slug_of_the_catalogue_is_a_spec() -> None:
    for name, entry in catalogue().items():
        assert spec_of("--spec", name) == entry.spec
        assert spec_of("--spec", entry.spec.slug).slug == entry.spec.slug


def test_flags_override_a_named_spec() -> None:
    assert spec_of("--spec", "pixel_dit", "--head-dim", 128).slug == "llsa_l2_b16_k8_d128_bf16"
    assert spec_of("--spec", SLUG, "--head-dim", 128).slug == "llsa_l2_b16_k8_d128_bf16"
    deep = spec_of("--spec", "tiny_blocks", "--levels", 2)
    assert deep.topks == (8, 4), "the expression is evaluated again"
    assert spec_of("--spec", "pixel_dit", "--target", "sm90").targets == ("sm90",)


def test_flags_override_the_fields_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "specs.toml"
    file.write_text(AUTO_TABLE)
    assert spec_of("--from", file, "--name", "long").head_dim == 32
    assert spec_of("--from", file, "--levels", 2) == Spec(levels=2, topk=(8, 4), head_dim=32)
    assert spec_of("--from", file, "--seq-len", 64, "--dtype", "fp32").dtype == "fp32"


def test_a_file_without_a_name_is_all_of_its_specs() -> None:
    packages = data_of("build", "--from", CATALOG_FILE, "--no-compile", "--dry-run")["packages"]
    assert [package["name"] for package in packages] == list(catalogue())


def test_a_spec_is_built_by_name_though_others_of_its_file_are_wrong(tmp_path: Path) -> None:
    file = tmp_path / "specs.toml"
    file.write_text(f"{AUTO_TABLE}[specs.odd]\nblock = 3\n[specs.typo]\nblok = 16\n")
    assert spec_of("--from", file, "--name", "long").head_dim == 32
    build = ("build", "--from", file, "--no-compile", "--dry-run", "--out", tmp_path / "out")
    assert [package["name"] for package in data_of(*build, "--name", "long")["packages"]] == ["long"]
    expect_error(invoke(*build), 2, "2 of 3 specs", "[specs.odd]", "[specs.typo]", "did you mean 'block'?")


def test_auto_stands_for_what_runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "describe", lambda: machine(cxx=True, nvcc=False))
    assert expand_targets(("auto",)) == ["cpu"]
    assert expand_targets(("sm80,auto", "cpu")) == ["cpu", "sm80"]


# -- plan --------------------------------------------------------------------------------------


def test_plan_gives_formulas_and_numbers() -> None:
    plan = data_of("plan", "--tokens", 65536, "--heads", 6)["plans"][0]
    assert plan["slug"] == SLUG and plan["size"] == {"N": 65536, "B": 1, "H": 6}
    assert plan["totals"]["keys_per_query"]["value"] == 512
    assert plan["totals"]["dense_flops"] == {"formula": "4*B*D*H*N**2", "value": 4 * 65536**2 * 6 * 64}
    assert {"stages", "tensors", "kernels", "growth", "levels"} <= set(plan)


def test_plan_for_people_has_all_parts() -> None:
    said = invoke("plan", "--tokens", 4096, "--batch", 2, "--heads", 3).stdout
    words = (
        "N=4,096 B=2 H=3",
        "plan of c, sm80, sm90, sm100",
        "fewest flops",
        "attend_fine",
        "keys per query",
        "saved memory",
        "N log N",
        "ceiling(N/b",
    )
    assert all(word in said for word in words)


def test_plan_traces_every_step_of_lowering() -> None:
    steps = data_of("plan", "--trace")["plans"][0]["trace"]
    passes = [(step["direction"], step["pass"]) for step in steps]
    named = ("build", *(name for name, _ in PASSES))
    assert passes == [(direction, name) for direction in ("forward", "backward") for name in named]
    said = invoke("plan", "--trace").stdout
    assert all(f"{step['direction']}, after {step['pass']}:" in said and step["plan"] in said for step in steps)


@pytest.mark.parametrize(
    ("block", "targets", "joined", "plan_of"),
    [
        (16, "cpu", True, ("cpu",)),
        (8, "cpu", False, TARGET_NAMES),
        (16, "cpu,sm90", False, ("c", "sm80", "sm90", "sm100")),
        (16, "", False, ("c", "sm80", "sm90", "sm100")),
    ],
)
def test_plan_of_cpus_alone_is_joined_where_blocks_fill_a_vector(
    block: int, targets: str, joined: bool, plan_of: tuple[str, ...]
) -> None:
    chosen = ("--target", targets) if targets else ()
    (plan,) = data_of("plan", "--block", block, "--k", 2, *chosen)["plans"]
    names = {stage["name"] for one in (plan, plan["backward"]) for stage in one["stages"]}
    whole, parts = {"attend", "attend_grad_q"}, {"attend_coarse", "attend_fine", "attend_grad_q_coarse"}
    assert (whole <= names, parts <= names) == (joined, not joined)
    assert plan["plan_of"] == list(plan_of)


def test_plan_chooses_the_depth() -> None:
    plan = data_of("plan", "--levels", "auto", "--seq-len", 1048576, "--k", "max(4, 16 // 2**l)")["plans"][0]
    assert plan["levels"]["auto"] and plan["levels"]["chosen"] == plan["levels"]["best"] > 2
    assert data_of("plan", "--levels", "auto", "--tokens", 1048576)["plans"][0]["levels"]["chosen"] > 2
    assert plan["size"]["N"] == 1048576, "the length that chooses the depth is the length of the numbers"


# -- list, doctor ------------------------------------------------------------------------------


def test_list_shows_the_catalogue() -> None:
    result = invoke("list")
    assert result.exit_code == 0
    for name, entry in catalogue().items():
        assert name in result.stdout and entry.spec.slug in result.stdout
    assert set(catalogue_specs()) <= set(invoke("list", "--quiet").stdout.split())


def test_list_tells_what_is_built(empty_cache: Path) -> None:
    rows = data_of("list")["specs"]
    assert all(row["built"] == [] for row in rows)
    assert {row["slug"] for row in rows if row["name"] is not None} == set(catalogue_specs())


def test_list_survives_a_spec_that_cannot_be_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codegen, "render", raises(LlsaError("no template")))
    assert all(row["built"] == [] for row in data_of("list")["specs"])


def test_doctor_says_what_is_there_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_of("doctor")
    assert [row["target"] for row in data["targets"]] == ["cpu", "c", "sm80", "sm90", "sm100"]
    assert data["packages"]["python"] == ".".join(map(str, sys.version_info[:3]))
    without = machine(cxx=False, nvcc=False)
    monkeypatch.setattr(toolchain, "describe", lambda: without)
    result = invoke("doctor")
    assert result.exit_code == 4
    assert "no C++ compiler" in result.stdout and "g++" in result.stdout


def test_doctor_without_nvcc_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "describe", lambda: machine(cxx=True, nvcc=False))
    result = invoke("doctor")
    assert result.exit_code == 0
    assert "sm90 cannot be compiled: no nvcc" in result.stdout and "pip install" in result.stdout


@pytest.mark.usefixtures("other_tools")
@pytest.mark.parametrize(("variable", "name"), [("CXX", "c++"), ("CUDACXX", "nvcc")])
@pytest.mark.parametrize("program", ["#!/bin/sh\necho 'no licence' >&2\necho 'call us' >&2\nexit 9\n", "no program"])
def test_doctor_does_not_trust_a_compiler_that_cannot_say_its_version(
    variable: str, name: str, program: str, tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "compiler"
    tool.write_text(program)
    tool.chmod(0o755)
    monkeypatch.setenv(variable, str(tool))
    result = invoke("doctor")
    said = "no licence\ncall us\n" if "licence" in program else "Exec format error"
    assert said in result.stdout and f"{variable}=/path/to/" in result.stdout
    assert re.search(rf"^{re.escape(name)} +broken: ", result.stdout, re.MULTILINE)
    data = data_of("doctor", exit_code=result.exit_code)
    assert said in data["compilers"][name]["fault"]
    assert {row["target"] for row in data["targets"] if str(tool) in row["compile_reason"]} == (
        {"cpu", "c"} if variable == "CXX" else {"sm80", "sm90", "sm100"}
    )
    target = "cpu" if variable == "CXX" else "sm90"
    message = data_of("build", *SMALL, "--target", target, "--out", tmp_path, exit_code=4)["error"]["message"]
    assert "is broken" in message and said in message


def test_doctor_tries_to_write_into_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    assert next(row for row in data_of("doctor")["folders"] if row["name"] == "cache")["ok"]
    monkeypatch.setattr("llsa_gen.cli.doctor.tempfile.mkdtemp", raises(OSError(errno.EROFS, "Read-only file system")))
    row = next(row for row in data_of("doctor")["folders"] if row["name"] == "cache")
    assert not row["ok"] and row["fault"] == "Read-only file system"
    assert f"Read-only file system; name another: {CACHE_VARIABLE}=DIR" in invoke("doctor").stdout


def test_doctor_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    row = next(row for row in data_of("doctor")["folders"] if row["name"] == "cache")
    assert row["ok"] and not row["exists"] and not list(tmp_path.iterdir())


# -- demo, and the rest ------------------------------------------------------------------------


def test_demo_can_be_tried_dry(tmp_path: Path) -> None:
    out = tmp_path / "picture.png"
    data = data_of("demo", "--size", 64, "--heads", 2, "--out", out, "--dry-run")
    assert data["path"] == str(out) and not out.exists()
    assert "4,096 pixels" in invoke("demo", "--size", 64, "--dry-run").stdout


@pytest.mark.parametrize(
    "args", [("--size", "100"), ("--heads", "0"), ("--seed", "-1"), ("--out", "picture.gif"), ("--out", "no/where.png")]
)
def test_demo_refuses_what_it_cannot_do(args: tuple[str, ...]) -> None:
    expect_error(invoke("demo", *args), 2, args[1])


def test_bytes_are_readable() -> None:
    assert [format_bytes(count) for count in (0, 1023, 1024, 1536 * 1024)] == ["0 B", "1023 B", "1.0 KiB", "1.5 MiB"]


def test_the_folder_of_a_checkout_is_its_own() -> None:
    assert catalogue_dir() == ROOT / "generated"
