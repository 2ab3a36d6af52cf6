# SPDX-License-Identifier: Apache-2.0
"""Ops by their names: `load`, generated packages, threads, forks, processes without compilers."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import llsa_gen
from llsa_gen import paths
from llsa_gen.codegen import render, write
from llsa_gen.environment import BUILD_VARIABLE
from llsa_gen.errors import NotBuiltError, SpecError, StaleError
from llsa_gen.ops import engine, launch, load_package
from llsa_gen.ops.calls import forget_passes
from llsa_gen.spec import Spec
from tests.torch_face.calls import KEYWORDS, SLUG, SMALL, inputs
from tests.tree import ROOT


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a program in a fresh interpreter that finds this checkout."""
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_op_is_the_general_function_at_its_spec(device: torch.device) -> None:
    op: Any = llsa_gen.load(SMALL.slug)
    q, k, v = inputs(device)
    assert op.name == SMALL.slug and op.spec == SMALL
    o, lse = op.attention(q, k, v, return_lse=True)
    expected = llsa_gen.llsa_attention(q, k, v, **KEYWORDS, return_lse=True)
    assert torch.equal(o, expected[0]) and torch.equal(lse, expected[1])
    idx = op.select(q, k)
    assert all(map(torch.equal, idx, llsa_gen.llsa_select(q, k, **KEYWORDS)))
    assert torch.equal(op.attend(q, k, v, idx), o)
    assert torch.equal(getattr(torch.ops.llsa_gen, op.name)(q, k, v)[0], o)


def test_a_name_of_the_catalogue_is_as_good_as_a_slug() -> None:
    assert llsa_gen.load("pixel_dit_fp32") == llsa_gen.load(SLUG)


@pytest.mark.parametrize("name", ["nope", "../x", "", f"{SLUG}_x00000000", "llsa_l9_b16_k8_d64_fp32", None, 3])
def test_unknown_names(name: Any) -> None:
    with pytest.raises(SpecError):
        llsa_gen.load(name)


def test_near_names_are_listed() -> None:
    with pytest.raises(SpecError, match="pixel_dit"):
        llsa_gen.load("pixel_did")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return write(render(SMALL), tmp_path).path


def test_a_generated_package_is_imported_by_its_path(package: Path, device: torch.device) -> None:
    found = importlib.util.spec_from_file_location(SMALL.slug, package / "__init__.py")
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    op: Any = llsa_gen.load(SMALL.slug)
    assert torch.equal(module.attention(*inputs(device)), op.attention(*inputs(device)))


@pytest.mark.parametrize("name", ["select.py", "coarsen.py", "__init__.py", "manifest.json"])
def test_an_edited_file_is_refused(package: Path, name: str) -> None:
    with (package / name).open("a") as file:
        file.write("\n")
    with pytest.raises(StaleError, match="(?s)is not what this version.*" + name + ".*llsa-gen build --spec"):
        load_package(package)


@pytest.mark.parametrize("name", ["select.py", "__init__.py", "manifest.json"])
def test_a_missing_file_is_refused(package: Path, name: str) -> None:
    (package / name).unlink()
    with pytest.raises(StaleError, match="(?s)" + name + ".*next: "):
        load_package(package)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format": 1}', '{"slug": 1, "spec": 2}', "\0"])
def test_a_broken_manifest_is_refused(package: Path, text: str) -> None:
    (package / "manifest.json").write_text(text)
    with pytest.raises(StaleError, match=r"(?s)manifest of a generated package is missing or broken.*next: "):
        load_package(package)


def test_load_looks_at_the_generated_package(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "catalogue_dir", lambda: package.parent)
    assert llsa_gen.load(SMALL.slug).spec == SMALL
    (package / "select.py").write_text("edited")
    with pytest.raises(StaleError):
        llsa_gen.load(SMALL.slug)


def test_threads_may_load_and_call_at_once(device: torch.device) -> None:
    slug = "llsa_l2_b4_k2_d16v24_fp16"
    qkv = inputs(device, dtype=torch.float16)

    def attention(_: int) -> Any:
        return llsa_gen.load(slug).attention(*qkv)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(attention, range(16)))
    assert all(torch.equal(result, results[0]) for result in results)


def test_a_forked_process_can_call() -> None:
    """The threads that run heads side by side do not live on in a fork."""
    program = f"""
import os, torch, llsa_gen
torch.set_num_threads(2)
op = llsa_gen.load({SMALL.slug!r})
q, k, v = (torch.ones(2, 2, 40, dim) for dim in (16, 16, 24))
expected = op.attention(q, k, v)
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(op.attention(q, k, v), expected) else 1)
for _ in range(200):
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
        raise SystemExit(os.waitstatus_to_exitcode(status))
    import time; time.sleep(0.1)
os.kill(child, 9)
raise SystemExit("the forked process hangs")
"""
    llsa_gen.load(SMALL.slug).attention(*inputs())
    done = run(program)
    assert done.returncode == 0, done.stderr


def test_a_built_op_needs_no_compiler() -> None:
    """Neither TileLang nor anything on the path; and nothing heavy is imported on the way."""
    llsa_gen.load(SMALL.slug).attention(*inputs())
    program = f"""
import sys, torch
before = set(sys.modules)
import llsa_gen
llsa_gen.load({SMALL.slug!r}).attention(*(torch.ones(1, 1, 40, dim) for dim in (16, 16, 24)))
print(sorted({{"tilelang", "tvm", "tvm_ffi", "sympy"}} & (set(sys.modules) - before)))
"""
    done = run(program, PATH="", CXX="", LLSA_GEN_BUILD="0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


@pytest.mark.usefixtures("empty_cache")
def test_building_on_first_use_can_be_forbidden(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    monkeypatch.setenv(BUILD_VARIABLE, "0")
    forget_passes()
    spec = Spec(levels=2, block=4, topk=(2, 1), head_dim=16, dtype="fp32", enrichment="none", weight="c*2")
    q, k, v = inputs(device, spec=spec)
    with pytest.raises(NotBuiltError) as caught:
        llsa_gen.llsa_attention(q, k, v, block_size=4, topk=(2, 1), enrichment="none", weight="2*c")
    forget_passes()
    command = engine.build_command(spec, launch.target_of(device))
    assert caught.value.command == command and f"run: {command}" in str(caught.value)
    assert "LLSA_GEN_BUILD forbids" in str(caught.value)
