# SPDX-License-Identifier: Apache-2.0
"""The cache of compiled kernels and the way there: whole entries or none, whatever happens; errors that help."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import llsa_gen
from llsa_gen import jit
from llsa_gen.codegen import render
from llsa_gen.digest import digest, digest_bytes
from llsa_gen.environment import BUILD_VARIABLE
from llsa_gen.errors import CompileError, NotBuiltError, OutputError, ToolMissingError
from llsa_gen.jit import cache, toolchain
from llsa_gen.jit.compile import compile_library
from llsa_gen.ops.calls import forget_passes
from llsa_gen.paths import CACHE_VARIABLE
from llsa_gen.spec import Spec
from llsa_gen.targets import get_target
from tests.command_line import has_all_parts, raises, shell
from tests.tree import ROOT

TINY = Spec(levels=1, block=4, topk=2, head_dim=16, dtype="fp32", enrichment="none")
KEY = "0123abcd"


def make(content: bytes = b"library", slug: str = "some") -> Callable[[Path], dict[str, Any]]:
    """Something that fills an entry."""

    def fill(folder: Path) -> dict[str, Any]:
        (folder / cache.LIBRARY).write_bytes(content)
        return {"slug": slug, "target": "cpu", "kernel": "k", "resources": None, "seconds": 0.5}

    return fill


def never(folder: Path) -> dict[str, Any]:
    raise AssertionError("a hit makes nothing")


def names() -> list[str]:
    """Everything in the cache folder."""
    home = cache.kernels_dir()
    return sorted(path.name for path in home.iterdir()) if home.is_dir() else []


# -- entries -----------------------------------------------------------------------------------


def test_a_miss_is_made_and_then_hit(empty_cache: Path) -> None:
    assert cache.find(KEY) is None and cache.entries() == ()
    entry, cached = cache.ensure(KEY, make())
    assert not cached and entry.library.read_bytes() == b"library"
    again, cached = cache.ensure(KEY, never)
    assert cached and again == entry == cache.find(KEY) and cache.entries() == (entry,)
    assert (entry.slug, entry.target) == ("some", "cpu") and entry.bytes > len(b"library")
    assert names() == [KEY], "no locks or staging folders stay behind"


def _file_instead(entry: Path) -> None:
    shutil.rmtree(entry)
    entry.write_text("")


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o755])
def test_an_entry_can_be_read_by_whoever_can_read_the_cache(mode: int, empty_cache: Path) -> None:
    cache.kernels_dir().mkdir(parents=True)
    cache.kernels_dir().chmod(mode)
    entry, _ = cache.ensure(KEY, make())
    assert entry.path.stat().st_mode & 0o777 == mode


DAMAGE: dict[str, Callable[[Path], object]] = {
    "truncated library": lambda entry: (entry / cache.LIBRARY).write_bytes(b"lib"),
    "empty library": lambda entry: (entry / cache.LIBRARY).write_bytes(b""),
    "no library": lambda entry: (entry / cache.LIBRARY).unlink(),
    "truncated record": lambda entry: (entry / cache.ENTRY).write_text('{"slug": "so'),
    "record of another kind": lambda entry: (entry / cache.ENTRY).write_text("[1]"),
    "null": lambda entry: (entry / cache.ENTRY).write_text("null"),
    "record nested too deeply": lambda entry: (entry / cache.ENTRY).write_text("[" * 100_000),
    "no text": lambda entry: (entry / cache.ENTRY).write_bytes(b"\xff\xfe"),
    "edited record": lambda entry: (entry / cache.ENTRY).write_text(
        (entry / cache.ENTRY).read_text().replace('"some"', '"other"')
    ),
    "record without digest": lambda entry: (entry / cache.ENTRY).write_text("{}"),
    "no record": lambda entry: (entry / cache.ENTRY).unlink(),
    "a file": _file_instead,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_broken_entry_is_a_miss_and_made_again(damage: str, empty_cache: Path) -> None:
    entry, _ = cache.ensure(KEY, make())
    DAMAGE[damage](entry.path)
    assert cache.find(KEY) is None and cache.entries() == ()
    repaired, cached = cache.ensure(KEY, make(b"repaired"))
    assert not cached and repaired.library.read_bytes() == b"repaired"
    assert cache.find(KEY) == repaired and names() == [KEY]


def test_a_failing_build_leaves_nothing(empty_cache: Path) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        (folder / "half.cpp").write_text("half")
        raise CompileError("refused")

    with pytest.raises(CompileError):
        cache.ensure(KEY, fail)
    assert names() == [] and cache.find(KEY) is None and cache.failures() == {}


def test_clear_removes_one_spec_or_all(empty_cache: Path) -> None:
    for key, slug in (("a", "one"), ("b", "two"), ("c", "one")):
        cache.ensure(key, make(slug=slug))
    freed = sum(entry.bytes for entry in cache.entries() if entry.slug == "one")
    assert cache.clear("one") == freed and names() == ["b"]
    (cache.kernels_dir() / "b" / cache.ENTRY).write_text("broken")
    assert cache.clear("two") == 0 and names() == ["b"]
    assert cache.clear() > 0 and names() == []
    assert cache.clear() == 0


# -- several processes -------------------------------------------------------------------------

MAKER = """
import sys, time
from pathlib import Path
from llsa_gen.jit import cache

def fill(folder):
    (folder / cache.LIBRARY).write_bytes(b"library")
    with open(sys.argv[2], "a") as log:
        log.write("made\\n")
    time.sleep(float(sys.argv[3]))
    return {"slug": "some", "target": "cpu"}

entry, cached = cache.ensure(sys.argv[1], fill)
assert entry.library.read_bytes() == b"library"
"""


def start(program: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for(condition: Callable[[], object]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited too long")


def test_processes_that_want_the_same_entry_make_it_once(empty_cache: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [start(MAKER, KEY, log, 0.5) for _ in range(3)]
    for process in processes:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    assert log.read_text() == "made\n" and names() == [KEY]


@pytest.fixture
def killed(empty_cache: Path, tmp_path: Path) -> str:
    """The key of a build that was killed in the middle."""
    log = tmp_path / "log"
    process = start(MAKER, KEY, log, 60)
    wait_for(log.exists)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert any(".making." in name for name in names())
    return KEY


def test_a_killed_build_is_no_entry_and_can_be_made_again(killed: str) -> None:
    assert cache.find(killed) is None and cache.entries() == ()
    _, cached = cache.ensure(killed, make())
    assert not cached and names() == [killed]


def test_what_killed_builds_left_goes_with_the_next_build(killed: str) -> None:
    cache.ensure("another", make())
    assert names() == ["another"]


def test_what_killed_builds_left_goes_with_clear(killed: str) -> None:
    assert cache.clear() > 0 and names() == []


def test_clear_and_other_builds_leave_a_build_that_goes_on_alone(empty_cache: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = start(MAKER, KEY, log, 2)
    wait_for(log.exists)
    cache.clear()
    cache.ensure("another", make())
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert names() == sorted([KEY, "another"])


# -- a real build ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache folder with the kernels of the tiny spec in it, built by the command that an error names."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(folder))
        command = _command_of_the_error(patch)
        words = shlex.split(command)
        assert words[0] == "llsa-gen"
        done = shell(*words[1:], "--out", folder / "generated")
        assert done.returncode == 0, done.stderr
        assert {entry.slug for entry in cache.entries()} == {TINY.slug}
        yield folder


def _command_of_the_error(patch: pytest.MonkeyPatch) -> str:
    patch.setenv(BUILD_VARIABLE, "0")
    forget_passes()
    x = torch.ones(1, 1, 9, 16)
    with pytest.raises(NotBuiltError) as caught:
        llsa_gen.llsa_attention(x, x, x, block_size=4, topk=2, num_levels=1, enrichment="none")
    patch.delenv(BUILD_VARIABLE)
    return caught.value.command


@pytest.fixture
def copied(stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that cache, to damage."""
    folder = tmp_path / "copied"
    shutil.copytree(stored, folder)
    monkeypatch.setenv(CACHE_VARIABLE, str(folder))
    return folder


def test_everything_is_built_by_the_command_of_the_error(copied: Path) -> None:
    assert jit.built(TINY, "cpu") and not jit.built(TINY, "sm80")
    events: list[jit.BuildEvent] = []
    kernels = jit.build(TINY, "cpu", progress=events.append)
    assert all(kernel.cached and kernel.path.is_file() and kernel.resources is None for kernel in kernels)
    assert {event.status for event in events} == {"cached"} and len(events) == len(kernels)
    assert len({kernel.name for kernel in kernels}) == len(kernels) == len(render(TINY).kernels)


def test_two_processes_repair_the_same_kernel(copied: Path) -> None:
    """One of them builds what a truncated library lacks; everything else is taken as it is."""
    entry = max(cache.entries(), key=lambda entry: str(entry.record["kernel"]))
    content = entry.library.read_bytes()
    entry.library.write_bytes(content[: len(content) // 2])
    assert not jit.built(TINY, "cpu")
    program = f"""
from llsa_gen import jit
from llsa_gen.spec import Spec
print(sum(not kernel.cached for kernel in jit.build(Spec.from_fields({TINY.to_fields()!r}), "cpu")))
"""
    processes = [start(program) for _ in range(2)]
    said = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert sorted(out.strip() for out, _ in said) == ["0", "1"]
    assert jit.built(TINY, "cpu") and not [name for name in names() if "." in name]


def test_the_key_holds_what_decides_the_code() -> None:
    package = render(TINY)
    cpu, kernels = get_target("cpu"), package.kernels
    keys = {
        jit.digest_with_schedule(package, kernel, target) for kernel in kernels for target in (cpu, get_target("sm80"))
    }
    assert len(keys) == 2 * len(kernels)
    other = render(Spec(levels=1, block=4, topk=2, head_dim=16, dtype="fp16", enrichment="none"))
    for target in (cpu, get_target("sm80")):
        found = {kernel.key.kind: jit.digest_with_schedule(other, kernel, target) for kernel in other.kernels}
        assert {kind for kind, key in found.items() if key in keys} == {"invert_index"}, "all else knows the dtype"


def test_a_kernel_that_does_not_know_its_name_is_shared_by_specs() -> None:
    """Pools do not depend on what is selected, so another topk finds them in the cache."""
    one, two = (render(Spec(levels=1, block=4, topk=topk, head_dim=16, dtype="fp32")) for topk in (2, 3))
    cpu = get_target("cpu")
    first, second = (
        next(kernel for kernel in package.kernels if kernel.factory == "coarsen") for package in (one, two)
    )
    assert jit.digest_with_schedule(one, first, cpu) == jit.digest_with_schedule(two, second, cpu)


# -- what can go wrong -------------------------------------------------------------------------


def test_a_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
    assert cache.find(KEY) is None and cache.entries() == () and cache.clear() == 0
    with pytest.raises(OutputError, match=f"(?s)could not be stored.*Not a directory.*{CACHE_VARIABLE}=DIR"):
        cache.ensure(KEY, make())


def test_a_cache_that_is_read_only(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry, _ = cache.ensure(KEY, make())

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("llsa_gen.jit.cache.tempfile.mkdtemp", refuse)
    assert cache.ensure(KEY, never) == (entry, True), "what is there needs no writing"
    with pytest.raises(OutputError, match=f"(?s)could not be stored.*Read-only file system.*{CACHE_VARIABLE}=DIR"):
        cache.ensure("another", make())


def test_a_full_disk(empty_cache: Path) -> None:
    def fill(folder: Path) -> dict[str, Any]:
        (folder / "kernel.cpp").write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OutputError, match=r"(?s)could not be stored.*No space left on device.*free some space"):
        cache.ensure(KEY, fill)
    assert names() == []


def spoil(entry: cache.CacheEntry, content: bytes) -> None:
    """Another library in an entry, which stays sound by its digests, as if it had been stored so."""
    entry.library.write_bytes(content)
    record = json.loads((entry.path / cache.ENTRY).read_text())
    record["library_sha256"] = digest_bytes(content)
    record["record_sha256"] = digest({name: value for name, value in record.items() if name != "record_sha256"})
    (entry.path / cache.ENTRY).write_text(json.dumps(record))


@pytest.fixture
def unopened(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process that has not opened a library yet."""
    load = sys.modules["llsa_gen.jit.load"]
    monkeypatch.setattr(load, "_REFUSED", set())
    load._load.cache_clear()
    forget_passes()
    yield
    load._load.cache_clear()
    forget_passes()


def load_tiny() -> dict[str, jit.Kernel] | None:
    package = render(TINY)
    return jit.load_kernels(package, "cpu", {kernel.name for kernel in package.kernels})


@pytest.mark.usefixtures("unopened")
def test_libraries_that_cannot_be_opened_are_built_again(copied: Path) -> None:
    """Sound by their digests, but truncated before they were stored, which would crash a process, or no libraries."""
    entries = cache.entries()
    first, second = (entry for entry in entries if str(entry.record["kernel"]).startswith(("coarsen", "select")))
    spoil(first, first.library.read_bytes()[:999])
    spoil(second, b"no library")
    x = torch.ones(1, 1, 9, 16)
    o = llsa_gen.llsa_attention(x, x, x, block_size=4, topk=2, num_levels=1, enrichment="none")
    assert torch.allclose(o, x)
    assert [entry.path for entry in cache.entries()] == [entry.path for entry in entries] and load_tiny() is not None


@pytest.mark.usefixtures("unopened")
def test_a_new_library_that_cannot_be_opened_is_an_error(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llsa_gen.jit.load._open", raises(OSError("failed to map segment")))
    assert load_tiny() is None, "the first time an entry may be broken"
    jit.build(TINY, "cpu")
    with pytest.raises(OutputError, match=r"(?s)could not be opened.*kernel\.so.*failed to map") as caught:
        load_tiny()
    assert has_all_parts(str(caught.value)) and jit.built(TINY, "cpu")


@pytest.mark.usefixtures("unopened")
def test_where_nothing_may_run_nothing_is_built_again(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llsa_gen.jit.load._open", raises(OSError("failed to map segment")))
    monkeypatch.setattr("llsa_gen.jit.load._is_noexec", lambda library: True)
    with pytest.raises(OutputError, match=rf"(?s)could not be opened.*noexec.*{CACHE_VARIABLE}=DIR"):
        load_tiny()
    assert jit.built(TINY, "cpu"), "sound entries stay"


@pytest.fixture
def no_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A machine without compilers."""
    for name in ("CXX", "CUDACXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setattr(toolchain, "_pypi_nvcc", list)
    toolchain.find_cxx.cache_clear()
    toolchain.find_nvcc.cache_clear()
    yield monkeypatch
    toolchain.find_cxx.cache_clear()
    toolchain.find_nvcc.cache_clear()


@pytest.mark.usefixtures("no_tools", "empty_cache")
@pytest.mark.parametrize(("target", "words"), [("cpu", "apt-get install g"), ("sm80", "put nvcc on the path")])
def test_a_missing_compiler_is_named_before_anything_is_lowered(target: str, words: str) -> None:
    with pytest.raises(ToolMissingError, match=f"(?s)needed to build kernels.*next: .*{words}") as caught:
        jit.build(TINY, target)
    assert names() == [] and has_all_parts(str(caught.value))


@pytest.mark.parametrize(("target", "variable"), [("cpu", "CXX"), ("sm80", "CUDACXX")])
def test_the_words_of_a_failing_compiler_are_kept(
    target: str, variable: str, no_tools: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = "kernel.cu(3): error: who wrote this?\n  ^\n1 error detected"
    tool = tmp_path / "compiler"
    tool.write_text(f"#!/bin/sh\nprintf '%s' '{said}' >&2\nexit 3\n")
    tool.chmod(0o755)
    no_tools.setenv(variable, str(tool))
    source = tmp_path / "kernel.cu"
    source.write_text("")
    with pytest.raises(CompileError, match="compiler failed with status 3") as caught:
        compile_library(source, tmp_path / "kernel.so", get_target(target), 0)
    assert caught.value.compiler_output == said and caught.value.path == source
    assert said in str(caught.value) and str(source) in str(caught.value)


def test_a_compiler_that_cannot_be_run(no_tools: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "compiler"
    tool.write_text("no program")
    tool.chmod(0o755)
    no_tools.setenv("CXX", str(tool))
    with pytest.raises(CompileError, match="cannot be run"):
        compile_library(tmp_path / "kernel.cpp", tmp_path / "kernel.so", get_target("cpu"), 0)
