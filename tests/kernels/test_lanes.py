# SPDX-License-Identifier: Apache-2.0
"""What only CPU kernels can get wrong: instruction sets, threads, forks, and the compiler in a process of its own.

That they compute the right thing is for the properties of the other files, which run on them.
"""

from __future__ import annotations

import multiprocessing
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from llsa_gen import jit
from llsa_gen.codegen import render
from llsa_gen.environment import BUILD_VARIABLE
from llsa_gen.errors import CompileError, ToolMissingError, UnsupportedError
from llsa_gen.jit import lower_lanes
from llsa_gen.jit.isa import ISAS, executable_isas, host_isa, vectors_of
from llsa_gen.jit.lower_lanes import LanesCompiler, LanesRequest
from llsa_gen.ops import engine, launch
from llsa_gen.paths import CACHE_VARIABLE
from llsa_gen.spec import Spec
from llsa_gen.workloads import clustered_qkv
from tests.kernels.calls import CPU, assert_right, run_attention, run_select
from tests.kernels.gradient_laws import CLUSTERED, assert_gradients
from tests.kernels.laws import BASE, JOINED
from tests.tree import ROOT

SMALL = Spec(levels=2, block=16, topk=(3, 2), head_dim=24, value_dim=40, dtype="fp32")
X86, ARM = 62, 183
"""Machines in the header of an ELF file."""


@pytest.fixture(autouse=True)
def _on_cpu_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "CPU_TARGET", "cpu")


def everything(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
    """Lists, results and gradients of one problem."""
    scale = SMALL.head_dim**-0.5
    lists = engine.select(SMALL, q, k)
    o, lse = engine.attend(SMALL, q, k, v, lists, scale)
    given = {"q": q, "k": k, "v": v, "o": o, "lse": lse, "o_grad": torch.ones_like(o), "lse_grad": torch.ones_like(lse)}
    return [*lists, o, lse, *engine.gradients(SMALL, given, scale, idx=lists).values()]


AND_RSP_MINUS_64 = bytes.fromhex("4883e4c0")
"""The instruction by which a function has its stack begin at a cache line."""


def request_of(name: str, isa: str, folder: Path) -> LanesRequest:
    """What compiles a kernel of the small spec, its text laid into a folder."""
    package = render(SMALL)
    kernel = next(kernel for kernel in package.kernels_for("cpu") if kernel.name == name)
    source = folder / kernel.file("cpu")
    source.write_text(package.files[source.name], encoding="utf-8")
    return LanesRequest(str(source), kernel.factory, kernel.arguments("cpu"), isa, str(folder / f"{name}.o"))


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether two results agree bit by bit."""
    return all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


@pytest.mark.parametrize(
    ("spec", "isa"),
    [*((BASE, isa) for isa in executable_isas()), (JOINED, executable_isas()[-1])],
    ids=lambda one: getattr(one, "slug", one),
)
def test_every_instruction_set_of_this_machine_is_right(spec: Spec, isa: str, processor: Callable[[str], None]) -> None:
    jit.build(spec, "cpu", isa=isa)
    processor(isa)
    assert jit.widest_built(spec, "cpu", ()).arch == isa
    for length in (1, 37, 700):
        q, k, v = clustered_qkv(spec, 1, 2, length)
        idx = run_select(spec, q, k)
        assert_right(spec, (q, k, v), idx, run_attention(spec, q, k, v))
        assert_gradients(replace(CLUSTERED, spec=spec, length=length), CPU)


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_compiles(isa: str, tmp_path: Path) -> None:
    package = render(SMALL)
    machine = ARM if isa == "aarch64" else X86
    with LanesCompiler() as lanes:
        for kernel in package.kernels_for("cpu"):
            if kernel.factory in ("attend_whole", "attend_grad_kv_fine", "invert_index", "merge_grad_kv_fine"):
                request = request_of(kernel.name, isa, tmp_path)
                assert lanes.compile_object(request)
                assert struct.unpack_from("<H", Path(request.output).read_bytes(), 18)[0] == machine


def test_arrays_on_the_stack_begin_at_cache_lines(tmp_path: Path) -> None:
    """A kernel that has them rounds its stack pointer down; a vector that lies across two lines takes twice as long."""
    request = request_of("attend_whole", "x86-64-v4", tmp_path)
    with LanesCompiler() as lanes:
        lanes.compile_object(request)
    assert AND_RSP_MINUS_64 in Path(request.output).read_bytes()
    assert set(tmp_path.iterdir()) == {Path(request.source), Path(request.output)}


@pytest.mark.parametrize("largest", [1e6, 1e9, 1e10, 1e12, 1e17])
def test_a_share_is_at_most_one_however_large_logits_are(largest: float) -> None:
    """Logits round to multiples of ever more; what a query gives to all of its keys is bounded nevertheless."""
    for length in (70, 700):
        q, k, v = (torch.randn(1, 2, length, dim) for dim in (24, 24, 40))
        factor = (largest * SMALL.head_dim**0.5 / float((q @ k.mT).abs().max())) ** 0.5
        *_, q_grad, k_grad, v_grad = everything(q * factor, k * factor, v)
        assert float(v_grad.abs().max()) <= 2 * length
        keys = length + -(-length // SMALL.block) + 1
        bound = keys * float(v.abs().sum(3).max()) * factor * 8
        assert float(q_grad.abs().max()) <= bound and float(k_grad.abs().max()) <= length * bound


def test_threads_change_no_bit() -> None:
    problem = clustered_qkv(SMALL, 2, 3, 777)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found.append(everything(*problem))
    finally:
        torch.set_num_threads(before)
    assert all(same(found[0], other) for other in found[1:])


def test_calls_at_the_same_time_do_not_meet() -> None:
    problems = [clustered_qkv(SMALL, 1, 2, 300 + seed, seed=seed) for seed in range(8)]
    expected = [everything(*problem) for problem in problems]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda problem: everything(*problem), problems))
    assert all(same(one, other) for one, other in zip(expected, found, strict=True))


def test_a_fork_computes_the_same() -> None:
    """OpenMP's threads do not come along into a fork; the child works alone instead of waiting for them."""
    problem = clustered_qkv(SMALL, 1, 2, 400)
    expected = everything(*problem)
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=lambda: queue.put(same(expected, everything(*problem))))
    child.start()
    child.join(60)
    assert child.exitcode == 0 and queue.get()


ALONE = """
import sys
sys.modules.update(tvm=None, tilelang=None)  # importing them fails
import torch
from tests.kernels.test_lanes import everything
torch.save(everything(*torch.load(sys.argv[1])), sys.argv[2])
"""


def test_what_is_built_needs_no_compiler(tmp_path: Path) -> None:
    """Not even TVM or a path where programs are found."""
    problem = clustered_qkv(SMALL, 1, 2, 300)
    expected = everything(*problem)
    torch.save(tuple(problem), tmp_path / "problem.pt")
    environment = {
        "PATH": "",
        "PYTHONPATH": str(ROOT),
        BUILD_VARIABLE: "0",
        **{name: value for name, value in os.environ.items() if name == CACHE_VARIABLE},
    }
    command = [sys.executable, "-c", ALONE, str(tmp_path / "problem.pt"), str(tmp_path / "results.pt")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert same(expected, torch.load(tmp_path / "results.pt"))


def test_another_version_of_tvm_is_refused(monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
    monkeypatch.setattr(lower_lanes, "version_of", lambda name: "0.1")
    kernel = next(kernel for kernel in render(SMALL).kernels_for("cpu") if kernel.factory == "attend_whole")
    with pytest.raises(ToolMissingError, match=r"(?s)'0\.1'.*pip install apache-tvm==.*still run"):
        jit.build(SMALL, "cpu", only={kernel.name})
    assert not list(empty_cache.rglob("kernel.so"))


PLAIN = """
from tvm.script import tirx as T


def plain(on, *, stored=1, stop=""):
    print("what kernels print is no answer")
    if stop:
        exec(stop)

    @T.prim_func
    def plain(x: T.handle("int32"), tile: T.int32):
        T.func_attr({"tirx.noalias": True, "tasks": "1"})
        x_view = T.decl_buffer((1,), "int32", data=x)
        x_view[0] = stored

    return plain
"""


def plain(folder: Path, **arguments: object) -> LanesRequest:
    """A request for a small kernel, which may stop the process that compiles it."""
    source = folder / "plain.py"
    source.write_text(PLAIN, encoding="utf-8")
    return LanesRequest(str(source), "plain", dict(arguments), host_isa(), str(folder / "plain.o"))


def once(folder: Path, stop: str) -> str:
    """A statement that stops the first process that comes by."""
    mark = str(folder / "mark")
    return f"import os\nif not os.path.exists({mark!r}):\n    open({mark!r}, 'w').close()\n    {stop}"


def test_one_process_serves_many_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    popen = subprocess.Popen

    def start(*arguments: Any, **options: Any) -> Any:
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    found = []
    with LanesCompiler() as lanes:
        for stored in (1, 2, 1):
            request = plain(tmp_path, stored=stored)
            assert lanes.compile_object(request) == "1"
            found.append(Path(request.output).read_bytes())
    assert found[0] == found[2] != found[1], "a kernel must not depend on those before it"
    assert len(started) == 1 and started[0].returncode is not None, "a process is left"


def test_a_process_that_crashes_is_an_error(tmp_path: Path) -> None:
    said = r"(?s)could not compile plain.*ended by signal 9"
    with LanesCompiler() as lanes, pytest.raises(CompileError, match=said):
        lanes.compile_object(plain(tmp_path, stop="import os; os.kill(os.getpid(), 9)"))


def test_what_tvm_refuses_is_shown(tmp_path: Path) -> None:
    """It comes from a process that ends; the next kernel is compiled all the same."""
    stop = once(tmp_path, "raise ValueError('no such lanes')")
    with LanesCompiler() as lanes:
        with pytest.raises(CompileError, match=r"(?s)could not compile plain.*ValueError: no such lanes"):
            lanes.compile_object(plain(tmp_path, stop=stop))
        assert lanes.compile_object(plain(tmp_path)) == "1"


def test_a_processor_without_kernels_is_named() -> None:
    with pytest.raises(UnsupportedError, match=r"(?s)riscv64.*aarch64.*target c"):
        vectors_of("riscv64")
