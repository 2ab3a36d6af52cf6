# SPDX-License-Identifier: Apache-2.0
"""CPU kernels for several instruction sets: built on one machine, and on each the widest that it executes is taken."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from llsa_gen import jit
from llsa_gen.codegen import KernelPackage, render
from llsa_gen.environment import BUILD_VARIABLE
from llsa_gen.errors import InputError, NotBuiltError, SpecError, ToolMissingError, UnsupportedError
from llsa_gen.jit import architecture_of, digest_with_schedule, digest_without_schedule, for_isa, machine_of
from llsa_gen.jit.architecture import linkable_isas
from llsa_gen.jit.isa import ISAS, executable_isas, host_isa
from llsa_gen.jit.records import file_name, write
from llsa_gen.ops import engine, launch
from llsa_gen.ops.calls import forget_passes
from llsa_gen.paths import CACHE_VARIABLE, TUNING_VARIABLE
from llsa_gen.spec import Spec
from llsa_gen.targets import Target, get_target
from llsa_gen.workloads import clustered_qkv
from tests.command_line import data_of, expect_error, has_all_parts, invoke
from tests.kernels.calls import assert_right
from tests.schedules import other_schedule, recorded

SPEC = Spec(levels=1, block=4, topk=2, head_dim=16, dtype="fp32", enrichment="none", gradient=False)
FLAGS = ("--levels", 1, "--block", 4, "--k", 2, "--head-dim", 16, "--dtype", "fp32", "--enrichment", "none")
COMMAND = ("build", *FLAGS, "--no-gradient")
KERNELS = [kernel.name for kernel in render(SPEC).kernels]
CPU = get_target("cpu")
HERE = executable_isas()
NARROWER = HERE[1:]

ALL = slice(None)
SCALE = SPEC.head_dim**-0.5

Entries = Mapping[str, list[Path]]


@pytest.fixture(scope="module")
def entries() -> Entries:
    """The kernels of every instruction set of this machine, where the cache has them."""
    return {isa: [kernel.path.parent for kernel in jit.build(SPEC, "cpu", isa=isa)] for isa in HERE}


@dataclass(frozen=True)
class Stock:
    """The kernels of a cache, by instruction set.

    Attributes:
        entries: Where to copy them from.
        folder: Where to.
    """

    entries: Entries
    folder: Path

    def put(self, isa: str, kernels: slice = ALL) -> None:
        """Copies some kernels of an instruction set."""
        for path in self.entries[isa][kernels]:
            shutil.copytree(path, self.folder / path.name)

    def remove(self, isa: str) -> None:
        """Removes the kernels of an instruction set, and forgets what was loaded."""
        for path in self.entries[isa]:
            shutil.rmtree(self.folder / path.name)
        forget_passes()


@pytest.fixture
def stock(entries: Entries, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stock]:
    """A cache without kernels, where none are built."""
    monkeypatch.setattr(launch, "CPU_TARGET", "cpu")
    monkeypatch.setenv(BUILD_VARIABLE, "0")
    forget_passes()
    yield Stock(entries, empty_cache / "kernels")
    forget_passes()


def right() -> None:
    """Computes something twice and compares it with the reference."""
    for length in (70, 9):
        q, k, v = clustered_qkv(SPEC, 1, 2, length)
        assert_right(SPEC, (q, k, v), engine.select(SPEC, q, k), engine.attention(SPEC, q, k, v, SCALE))


# -- what is taken -----------------------------------------------------------------------------


def test_the_widest_that_is_built_is_taken(stock: Stock, caplog: pytest.LogCaptureFixture) -> None:
    """Without the widest one the next is taken, which one line says; without any, calls are refused."""
    for isa in HERE:
        stock.put(isa)
    for isa in HERE:
        caplog.clear()
        assert jit.widest_built(SPEC, "cpu", KERNELS).arch == isa
        right()
        said = [record.getMessage() for record in caplog.records if record.name == "llsa_gen"]
        assert len(said) == (isa != host_isa())
        assert all(f"kernels for {isa}:" in line and f"--isa {host_isa()})" in line for line in said)
        assert all(record.levelno == logging.WARNING for record in caplog.records)
        stock.remove(isa)
    with pytest.raises(NotBuiltError, match=f"not built for cpu {host_isa()}, and") as caught:
        right()
    assert caught.value.command == engine.build_command(SPEC, "cpu")
    assert caught.value.command.split("--isa ")[1].split()[0] == host_isa()


@pytest.mark.parametrize("isa", NARROWER)
def test_what_the_processor_lacks_is_never_loaded(isa: str, stock: Stock, processor: Callable[[str], None]) -> None:
    wider = HERE[: HERE.index(isa)]
    for each in wider:
        stock.put(each)
    processor(isa)
    with pytest.raises(NotBuiltError, match=rf"not built for cpu {isa} \(only for {', '.join(wider)}\)") as caught:
        right()
    assert f"--isa {isa}" in caught.value.command
    package = render(SPEC)
    for each in wider:
        with pytest.raises(UnsupportedError, match=f"(?s)does not execute.*{each}") as refused:
            jit.load_kernels(package, for_isa(CPU, each), KERNELS)
        assert has_all_parts(str(refused.value))
    stock.put(isa)
    right()


def test_a_part_is_taken_where_it_suffices(stock: Stock) -> None:
    """Pools and lists of a spec of which nothing else was ever built, as they are those of another spec."""
    whole = replace(SPEC, gradient=True)
    stock.put(HERE[-1])
    q, k, _ = clustered_qkv(SPEC, 1, 2, 70)
    assert not jit.built_isas(whole)
    assert all(map(torch.equal, engine.select(whole, q, k), engine.select(SPEC, q, k)))


@pytest.mark.skipif(not NARROWER, reason="one instruction set alone has kernels here")
def test_instruction_sets_are_not_mixed(stock: Stock, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of the widest one is left alone; and what serves a process first serves it until the end."""
    loaded: list[str] = []
    load = jit.load_kernels

    def noted(package: KernelPackage, target: Target, only: frozenset[str]) -> Any:
        loaded.append(target.arch)
        return load(package, target, only)

    monkeypatch.setattr(jit, "load_kernels", noted)
    stock.put(host_isa(), slice(1))
    assert jit.widest_built(SPEC, "cpu", KERNELS).arch == host_isa(), "nothing is whole, so that this would be built"
    stock.put(NARROWER[0])
    q, k, v = clustered_qkv(SPEC, 1, 2, 70)
    idx = engine.select(SPEC, q, k)
    stock.put(host_isa(), slice(1, None))
    assert jit.widest_built(SPEC, "cpu", KERNELS).arch == host_isa()
    assert_right(SPEC, (q, k, v), idx, engine.attention(SPEC, q, k, v, SCALE))
    assert set(loaded) == {NARROWER[0]} and len(loaded) > 1
    forget_passes()
    engine.select(SPEC, q, k)
    assert loaded[-1] == host_isa()


# -- what is built -----------------------------------------------------------------------------


def test_the_digest_of_this_machine_is_that_of_its_instruction_set() -> None:
    package = render(SPEC)
    for kernel in package.kernels:
        for digest in (digest_with_schedule, digest_without_schedule):
            by_isa = {isa: digest(package, kernel, for_isa(CPU, isa)) for isa in ISAS}
            assert len(set(by_isa.values())) == len(ISAS)
            assert by_isa[host_isa()] == digest(package, kernel, CPU)
    assert architecture_of(CPU) == architecture_of(get_target("c")) == host_isa()
    assert architecture_of(get_target("sm90")) == "sm_90a"


def test_builds_say_what_they_are_for(entries: Entries, tmp_path: Path) -> None:
    """The second one touches nothing."""
    command = (*COMMAND, *(word for isa in HERE for word in ("--isa", isa)), "--out", tmp_path / "own")
    first = data_of(*command)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "own").rglob("*")}
    second = data_of(*command[:-2], "--isa", f"host,{HERE[-1]}", "--out", tmp_path / "own")
    for data in (first, second):
        kernels = data["packages"][0]["kernels"]
        assert [kernel["isa"] for kernel in kernels] == [isa for isa in HERE for _ in KERNELS]
        assert all(kernel["cached"] and kernel["target"] == "cpu" for kernel in kernels)
    assert second["nothing_to_do"]
    said = invoke(*command).stdout
    assert "nothing to do" in said and all(said.count(f" {isa} ") == len(KERNELS) for isa in HERE)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "own").rglob("*")}
    assert {isa: [str(path / "kernel.so") for path in paths] for isa, paths in entries.items()} == {
        isa: [kernel["path"] for kernel in first["packages"][0]["kernels"] if kernel["isa"] == isa] for isa in HERE
    }


@pytest.mark.usefixtures("empty_cache")
def test_all_are_those_of_this_architecture(tmp_path: Path) -> None:
    planned = data_of(*COMMAND, "--isa", "all", "--dry-run", "--out", tmp_path / "own")["packages"][0]["planned"]
    assert planned == {f"cpu {isa}": False for isa in linkable_isas()} and set(HERE) <= set(linkable_isas())


FOREIGN = next(isa for isa in ISAS if isa not in linkable_isas())


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize(
    ("words", "exit_code", "said"),
    [
        (("--isa", "x86-64-v5"), 2, ("no CPU kernels", "'x86-64-v5'", "x86-64-v3", "all", "did you mean")),
        (("--isa", ""), 2, ("no CPU kernels", "try ")),
        (("--isa", "host", "--target", "sm90"), 2, ("target cpu", "for sm90", "--target cpu --isa")),
        (("--isa", "host", "--target", "c"), 2, ("target cpu", "for c", "--target cpu --isa")),
        (("--isa", FOREIGN), 4, ("links nothing", FOREIGN, host_isa(), CACHE_VARIABLE)),
        (("--isa", "host", "--no-compile"), 2, ("--no-compile compiles nothing",)),
    ],
)
def test_a_wrong_instruction_set_is_said(
    words: tuple[str, ...], exit_code: int, said: tuple[str, ...], tmp_path: Path
) -> None:
    result = invoke(*COMMAND, *words, "--out", tmp_path / "own", "--quiet")
    expect_error(result, exit_code, *said)
    assert has_all_parts(result.stderr.strip()) and not list(tmp_path.iterdir())


def test_python_refuses_the_same() -> None:
    for function in (jit.build, jit.built):
        with pytest.raises(SpecError, match=r"(?s)no CPU kernels.*did you mean"):
            function(SPEC, "cpu", isa="x86-64-v5")
        with pytest.raises(InputError, match=r"(?s)only kernels of the target cpu.*for sm90"):
            function(SPEC, "sm90", isa=host_isa())


@pytest.mark.usefixtures("empty_cache")
def test_another_architecture_is_built_elsewhere() -> None:
    with pytest.raises(ToolMissingError, match=f"(?s)links nothing for {FOREIGN}.*build on such a machine"):
        jit.build(SPEC, "cpu", isa=FOREIGN)
    can, why = jit.toolchain.describe().can_compile(for_isa(CPU, FOREIGN))
    assert not can and FOREIGN in why and not jit.cache.entries()


def test_what_is_built_is_listed(stock: Stock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llsa_gen.cli.list.catalogue_dir", lambda: tmp_path)
    assert invoke(*COMMAND, "--no-compile", "--out", tmp_path).exit_code == 0
    isas = list(dict.fromkeys((HERE[0], HERE[-1])))
    for isa in isas:
        stock.put(isa)
    row = next(row for row in data_of("list")["specs"] if row["slug"] == SPEC.slug)
    assert (row["built"], row["isas"]) == (["cpu"], {"cpu": isas})
    assert f"cpu ({', '.join(isas)})" in invoke("list").stdout


def test_doctor_names_the_instruction_set() -> None:
    rows = {row["target"]: row["run_reason"] for row in json.loads(invoke("doctor", "--json").stdout)["targets"]}
    assert rows["cpu"] == rows["c"] == host_isa()


# -- tuning records ----------------------------------------------------------------------------


@pytest.mark.skipif(not NARROWER, reason="one instruction set alone has kernels here")
def test_records_hold_for_their_instruction_set_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one that says of itself that it is of the narrower one."""
    monkeypatch.setenv(TUNING_VARIABLE, str(tmp_path))
    package, narrow = render(SPEC), for_isa(CPU, NARROWER[0])
    kernel = next(kernel for kernel in package.kernels if kernel.key.kind == "attend")
    schedule = other_schedule(SPEC, kernel.name)
    record = recorded(SPEC, kernel.name, schedule)
    write(record, tmp_path)
    assert machine_of("cpu").isa == host_isa() and machine_of(narrow).isa == narrow.arch
    assert jit.tuned(package, CPU).kernels == jit.tuned(package, for_isa(CPU, host_isa())).kernels != package.kernels
    assert jit.tuned(package, narrow).kernels == package.kernels
    forged = file_name(kernel.name, digest_without_schedule(package, kernel, narrow), machine_of("cpu"))
    shutil.copyfile(tmp_path / record.name, tmp_path / forged)
    assert jit.tuned(package, narrow).kernels == package.kernels
