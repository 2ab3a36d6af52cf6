# SPDX-License-Identifier: Apache-2.0
"""From source to a shared library, with what the compiler says of its resources."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llsa_gen.errors import CompileError
from llsa_gen.jit.architecture import architecture_of
from llsa_gen.jit.isa import compile_flags
from llsa_gen.jit.toolchain import require_cxx, require_nvcc, tilelang_folder
from llsa_gen.targets import Target

CPU_FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros")
CPU_FLAGS_SUMS = ("-fassociative-math", "-funroll-loops")
"""Sums may be regrouped, which vectorises them; NaN and infinity keep their meaning (no -ffinite-math-only)."""
CUDA_FLAGS = ("-O3", "-std=c++17", "-w", "--shared", "-cudart", "static", "-Xcompiler", "-fPIC", "-Xptxas", "-v")

ENTRY_FLAGS = ("-fopenmp",)
"""Of the entry of a CPU kernel, besides those of the target."""

SCRIPT = "compile.sh"
"""Beside a source that a compiler refused: runs the compiler again."""
DOCTOR = "`llsa-gen doctor` says what this machine can compile, and what to do about the rest"

_INSTRUCTIONS = {
    "mma": r"\bmma\.sync",
    "wgmma": r"\bwgmma\.mma_async",
    "tma": r"\bcp\.async\.bulk\.tensor",
    "cp_async": r"\bcp\.async\.c[ag]\.shared",
}


@dataclass(frozen=True)
class Resources:
    """What a GPU kernel takes.

    Attributes:
        registers: 32-bit registers of a thread.
        spill_bytes: Bytes of registers stored to local memory.
        shared_bytes: Shared memory of a block, static and dynamic, in bytes.
        instructions: Matrix and copy instructions in the PTX: ``mma``, ``wgmma``, ``tma``, ``cp_async``.
    """

    registers: int
    spill_bytes: int
    shared_bytes: int
    instructions: dict[str, int] = field(default_factory=dict)


def compile_library(source: Path, library: Path, target: Target, shared_bytes: int) -> Resources | None:
    """Compiles a lowered source; on a GPU target also reads its resources.

    Compilers run in the folder of the source and are told names in it, so that what they say stays true where the
    folder is moved to.

    Args:
        source: C++ or CUDA text.
        library: Where the library shall be, below the folder of the source.
        target: The machine to compile for.
        shared_bytes: Dynamic shared memory of a block.

    Raises:
        ToolMissingError: The compiler is not installed.
        CompileError: The compiler failed; its message is kept as it is, and `SCRIPT` beside the source runs it again.
    """
    made = library.relative_to(source.parent)
    if not target.is_cuda:
        _run([require_cxx().path, *flags(target), *_includes(), "-o", str(made), "-x", "c++", source.name], source)
        return None
    command = [require_nvcc().path, *flags(target), *_includes(), "-o", str(made), source.name]
    said = _run([*command, "-keep", "-keep-dir", str(made.parent)], source)
    return _resources(said, _ptx(library.parent), shared_bytes)


def compile_entry(source: Path, code: Path, library: Path, target: Target) -> None:
    """Compiles the entry of a CPU kernel and links it with the kernel's object file; errors as `compile_library`."""
    command = [require_cxx().path, *flags(target), *ENTRY_FLAGS, "-o", str(library.relative_to(source.parent))]
    _run([*command, source.name, str(code.relative_to(source.parent))], source)


def flags(target: Target) -> tuple[str, ...]:
    """The compiler flags of a target; part of the identity of what is built."""
    if not target.is_cuda:
        return (*CPU_FLAGS, *CPU_FLAGS_SUMS, *compile_flags(architecture_of(target)))
    number = target.arch.removeprefix("sm_")
    return (*CUDA_FLAGS, f"-gencode=arch=compute_{number},code={target.arch}")


def _includes() -> tuple[str, ...]:
    folder = tilelang_folder()
    return (f"-I{folder / 'src'}", f"-I{folder / '3rdparty' / 'cutlass' / 'include'}")


def _run(command: Sequence[str], source: Path) -> str:
    tool = command[0]
    try:
        done = subprocess.run(  # noqa: S603  # a compiler that the user named or that is on the path
            command, cwd=source.parent, capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as error:
        raise CompileError(
            f"{tool} cannot be run", path=source, tool=tool, compiler_output=str(error), hint=DOCTOR
        ) from error
    if done.returncode:
        made = Path(command[command.index("-o") + 1]).parent
        script = f'#!/bin/sh\ncd "$(dirname "$0")" && mkdir -p {made} && exec {shlex.join(command)}\n'
        (source.parent / SCRIPT).write_text(script, encoding="utf-8")
        what = f"{Path(tool).name} failed with status {done.returncode}"
        hint = f"run it again: sh {source.parent / SCRIPT}"
        raise CompileError(what, path=source, tool=tool, compiler_output=done.stdout + done.stderr, hint=hint)
    return done.stderr


def _ptx(folder: Path) -> str:
    return "\n".join(path.read_text(errors="replace") for path in sorted(folder.glob("*.ptx")))


def _resources(said: str, ptx: str, shared_bytes: int) -> Resources:
    registers = [int(number) for number in re.findall(r"Used (\d+) registers", said)]
    spills = [int(number) for number in re.findall(r"(\d+) bytes spill stores", said)]
    static = [int(number) for number in re.findall(r"(\d+) bytes smem", said)]
    counts = {name: len(re.findall(pattern, ptx)) for name, pattern in _INSTRUCTIONS.items()}
    return Resources(max(registers, default=0), sum(spills), max(static, default=0) + shared_bytes, counts)
