# SPDX-License-Identifier: Apache-2.0
"""Building the kernels of a spec for a target: key, cache, lower, compile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llsa_gen.codegen import KernelInstance, KernelPackage, render
from llsa_gen.errors import CompileError
from llsa_gen.jit import cache as store
from llsa_gen.jit.architecture import architecture_of, executable_targets, for_isa
from llsa_gen.jit.compile import DOCTOR, SCRIPT, Resources, compile_entry, compile_library
from llsa_gen.jit.identity import compiler_of, digest_with_schedule
from llsa_gen.jit.isa import ISAS
from llsa_gen.jit.tasks import entry_text
from llsa_gen.jit.toolchain import require_compiler
from llsa_gen.jit.tuned import machines_on_record, tuned
from llsa_gen.spec import Spec
from llsa_gen.targets import Target, get_target

if TYPE_CHECKING:
    from llsa_gen.jit.lower_lanes import LanesCompiler  # a program of its own, which must not be loaded before it runs

AT_ONCE = 2
"""Kernels in work at the same time: TileLang lowers one while the C++ compiler or nvcc compiles another."""

Status = Literal["cached", "lowering", "compiling", "done"]


@dataclass(frozen=True)
class BuildEvent:
    """One step of a build, for showing progress; the target is told with its instruction set where one was chosen."""

    kernel: str
    target: str
    status: Status
    index: int
    total: int


@dataclass(frozen=True)
class BuiltKernel:
    """One compiled kernel of a spec.

    Attributes:
        name: Unique in the spec.
        target: What it was built for.
        arch: The instruction set, or the architecture of the GPU.
        path: The shared library.
        cached: Whether it was there already.
        seconds: How long the build took, when it was built.
        resources: What it takes of a GPU; None on a CPU.
    """

    name: str
    target: str
    arch: str
    path: Path
    cached: bool
    seconds: float
    resources: Resources | None


Listener = Callable[[BuildEvent], None]
Say = Callable[[Status], None]


def build(
    spec: Spec,
    target: str | Target,
    *,
    isa: str | None = None,
    only: Collection[str] | None = None,
    progress: Listener | None = None,
    records: bool = True,
) -> tuple[BuiltKernel, ...]:
    """Builds the kernels of a spec for a target, two at a time; what is in the cache is taken from there.

    Args:
        spec: What to build.
        target: The target, or its name.
        isa: Instruction set of CPU kernels; that of this machine when not given. It need not be executed here.
        only: Names of the kernels to build; all of them when not given.
        progress: Called at every step, from several threads.
        records: Whether kernels have the schedules of their tuning records, or the default ones.

    Raises:
        InfeasibleError: No schedule of a kernel fits the target.
        InputError: The target has no instruction set to choose.
        SpecError: There is no such target, or there are no kernels for the instruction set.
        ToolMissingError: A compiler is missing.
        CompileError: A compiler refused; holds its message.
        OutputError: The cache cannot be written.
    """
    from llsa_gen.jit.lower_lanes import LanesCompiler

    machine = for_isa(get_target(target), isa)
    package = tuned(render(spec), machine) if records else render(spec)
    package.require_feasible(machine.name)
    chosen = [kernel for kernel in package.kernels_for(machine) if only is None or kernel.name in only]

    def build_one(index: int) -> BuiltKernel:
        def say(status: Status) -> None:
            if progress is not None:
                progress(BuildEvent(chosen[index].name, machine.label, status, index, len(chosen)))

        return _build_one(package, chosen[index], machine, lanes, say)

    with LanesCompiler() as lanes, ThreadPoolExecutor(AT_ONCE) as pool:
        return tuple(pool.map(build_one, range(len(chosen))))


def build_kernel(
    package: KernelPackage, kernel: KernelInstance, target: str | Target, lanes: LanesCompiler | None = None
) -> BuiltKernel:
    """Builds one kernel, which may have another schedule than the package gives it; errors as `build`.

    Args:
        package: What it is part of.
        kernel: The kernel.
        target: The target, or its name.
        lanes: Processes of TVM to use; without them one is started for this kernel alone.
    """
    from llsa_gen.jit.lower_lanes import LanesCompiler

    with nullcontext(lanes) if lanes is not None else LanesCompiler() as own:
        return _build_one(package, kernel, get_target(target), own, lambda status: None)


def built(spec: Spec, target: str | Target, *, isa: str | None = None, only: Collection[str] | None = None) -> bool:
    """Whether the kernels of a spec are all in the cache; imports neither torch nor a compiler.

    That is with the default schedules, or with those on record for this processor and some number of threads.

    Args:
        spec: Whose kernels.
        target: The target, or its name.
        isa: Instruction set of CPU kernels; that of this machine when not given.
        only: Names of the kernels; all of them when not given.

    Raises:
        InputError: The target has no instruction set to choose.
        SpecError: There is no such target, or there are no kernels for the instruction set.
        StaleError: A record of this processor in a folder that was named cannot be used.
    """
    package, machine = render(spec), for_isa(get_target(target), isa)
    offered = (package, *(tuned(package, machine, here) for here in machines_on_record(package, machine)))
    return any(_has(one, machine, only) for one in offered)


def built_isas(spec: Spec, only: Collection[str] | None = None) -> tuple[str, ...]:
    """The instruction sets that CPU kernels of a spec are built for, executed here or not; the rest as `built`."""
    return tuple(isa for isa in ISAS if built(spec, "cpu", isa=isa, only=only))


def widest_built(spec: Spec, target: str, only: Collection[str]) -> Target:
    """The target whose kernels serve calls here: of the instruction sets executed here, the widest one that is built.

    One of which the cache has every kernel, with the schedules on record, comes before one of which it has those that
    a call needs: passes must not mix instruction sets, as those backward find pools and lists again, bit by bit. Where
    there is neither, and for other targets, it is what this machine builds for.

    Args:
        spec: Whose kernels.
        target: Name of the target.
        only: Names of the kernels that a call needs.

    Raises:
        SpecError: There is no such target.
        StaleError: A record of this machine in a folder that was named cannot be used.
    """
    offered = executable_targets(get_target(target))
    if len(offered) == 1:
        return offered[0]
    package = render(spec)
    found = (one for names in (None, only) for one in offered if _has(tuned(package, one), one, names))
    return next(found, offered[0])


def _has(package: KernelPackage, target: Target, only: Collection[str] | None) -> bool:
    """Whether the cache has some kernels of a package, or all of them."""
    kernels = [kernel for kernel in package.kernels_for(target) if only is None or kernel.name in only]
    return all(store.find(digest_with_schedule(package, kernel, target)) is not None for kernel in kernels)


_LOWERING = threading.Lock()
"""TileLang's compiler is used by one thread at a time."""


def _build_one(
    package: KernelPackage, kernel: KernelInstance, target: Target, lanes: LanesCompiler, say: Say
) -> BuiltKernel:
    key = digest_with_schedule(package, kernel, target)

    def make(folder: Path) -> dict[str, Any]:
        try:
            return _make(package, kernel, target, folder, lanes, say)
        except CompileError as error:
            _keep(error, folder, f"{kernel.name}-{key[:8]}")
            raise

    entry, cached = store.ensure(key, make)
    say("cached" if cached else "done")
    resources = entry.record.get("resources")
    return BuiltKernel(
        name=kernel.name,
        target=target.name,
        arch=architecture_of(target),
        path=entry.library,
        cached=cached,
        seconds=0.0 if cached else float(entry.record["seconds"]),
        resources=None if resources is None else Resources(**resources),
    )


def _keep(error: CompileError, folder: Path, name: str) -> None:
    """Keeps what a compiler refused, and lets the error name that place instead of a folder that goes away."""
    _remove(folder / "work")
    kept = store.keep_failed(folder, name)
    if kept is not None:
        error.path = None if error.path is None else kept / Path(str(error.path)).name
        error.hint = f"run it again: sh {kept / SCRIPT}" if (kept / SCRIPT).is_file() else error.hint or DOCTOR


def _make(
    package: KernelPackage, kernel: KernelInstance, target: Target, folder: Path, lanes: LanesCompiler, say: Say
) -> dict[str, Any]:
    """Fills a cache folder with the source, the lowered source and the library."""
    started = time.perf_counter()
    compiler = require_compiler(target)  # before lowering, which takes far longer than to find that there is none
    say("lowering")
    source = folder / kernel.file(target.name)
    source.write_text(package.files[source.name], encoding="utf-8")
    work = folder / "work"
    work.mkdir()
    resources = None
    if target.language == "tvm":
        _make_lanes(kernel, target, source, work, lanes, say)
    else:
        resources = _make_tiles(package, kernel, target, source, work, say)
    (work / store.LIBRARY).rename(folder / store.LIBRARY)
    _remove(work)
    return {
        "arch": architecture_of(target),
        "kernel": kernel.name,
        "resources": None if resources is None else asdict(resources),
        "seconds": round(time.perf_counter() - started, 3),
        "slug": package.slug,
        "target": target.name,
        "toolchain": {"compiler": compiler.version, **compiler_of(target.language)},
    }


def _make_tiles(
    package: KernelPackage, kernel: KernelInstance, target: Target, source: Path, work: Path, say: Say
) -> Resources | None:
    """A library from a kernel in TileLang, by way of C++ or CUDA source."""
    from llsa_gen.jit.lower import lower_kernel

    exact = package.spec.dtype == "fp32"
    with _LOWERING:
        lowered = lower_kernel(source, kernel.factory, kernel.arguments(target.name), target, exact=exact)
    text = source.parent / ("kernel.cu" if target.is_cuda else "kernel.cpp")
    text.write_text(lowered.source, encoding="utf-8")
    say("compiling")
    return compile_library(text, work / store.LIBRARY, target, lowered.shared_bytes)


def _make_lanes(
    kernel: KernelInstance, target: Target, source: Path, work: Path, lanes: LanesCompiler, say: Say
) -> None:
    """A library from a kernel in TVM's language: LLVM makes an object, the C++ compiler its entry."""
    from llsa_gen.jit.lower_lanes import LanesRequest, symbol_of

    code = source.parent / "kernel.o"
    arguments, isa = kernel.arguments(target.name), architecture_of(target)
    request = LanesRequest(str(source), kernel.factory, arguments, isa, str(code))
    tasks = lanes.compile_object(request)
    say("compiling")
    text = source.parent / "kernel.cpp"
    text.write_text(entry_text(symbol_of(kernel.factory), kernel.parameters, tasks), encoding="utf-8")
    compile_entry(text, code, work / store.LIBRARY, target)


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
