# SPDX-License-Identifier: Apache-2.0
"""From source to a shared library, with what the compiler says of its resources."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llsa_gen.errors import CompileError
from llsa_gen.jit.isa import compile_flags, host_isa
from llsa_gen.jit.toolchain import require_cxx, require_nvcc, tilelang_folder
from llsa_gen.targets import Target

CPU_FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros")
CPU_FLAGS_SUMS = ("-fassociative-math", "-funroll-loops")
"""Sums may be regrouped, which vectorises them; NaN and infinity keep their meaning (no -ffinite-math-only)."""
CUDA_FLAGS = ("-O3", "-std=c++17", "-w", "--shared", "-cudart", "static", "-Xcompiler", "-fPIC", "-Xptxas", "-v")

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
    """Compiles a lowered source next to where the library shall be; on a GPU target also reads its resources.

    Raises:
        ToolMissingError: The compiler is not installed.
        CompileError: The compiler failed; its message is kept as it is.
    """
    if not target.is_cuda:
        _run([require_cxx().path, *flags(target), *_includes(), "-o", str(library), "-x", "c++", str(source)], source)
        return None
    command = [require_nvcc().path, *flags(target), *_includes(), "-o", str(library), str(source)]
    said = _run([*command, "-keep", "-keep-dir", str(library.parent)], source)
    return _resources(said, _ptx(library.parent), shared_bytes)


def flags(target: Target) -> tuple[str, ...]:
    """The compiler flags of a target; part of the identity of what is built."""
    if not target.is_cuda:
        return (*CPU_FLAGS, *CPU_FLAGS_SUMS, *compile_flags(host_isa()))
    number = target.arch.removeprefix("sm_")
    return (*CUDA_FLAGS, f"-gencode=arch=compute_{number},code={target.arch}")


def _includes() -> tuple[str, ...]:
    folder = tilelang_folder()
    return (f"-I{folder / 'src'}", f"-I{folder / '3rdparty' / 'cutlass' / 'include'}")


def _run(command: Sequence[str], source: Path) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)  # noqa: S603  (a compiler)
    except OSError as error:
        raise CompileError(f"{command[0]} cannot be run", path=source, compiler_output=str(error)) from error
    if done.returncode:
        what = f"{Path(command[0]).name} failed with status {done.returncode}"
        raise CompileError(what, path=source, compiler_output=done.stdout + done.stderr)
    return done.stderr


def _ptx(folder: Path) -> str:
    return "\n".join(path.read_text(errors="replace") for path in sorted(folder.glob("*.ptx")))


def _resources(said: str, ptx: str, shared_bytes: int) -> Resources:
    registers = [int(number) for number in re.findall(r"Used (\d+) registers", said)]
    spills = [int(number) for number in re.findall(r"(\d+) bytes spill stores", said)]
    static = [int(number) for number in re.findall(r"(\d+) bytes smem", said)]
    counts = {name: len(re.findall(pattern, ptx)) for name, pattern in _INSTRUCTIONS.items()}
    return Resources(max(registers, default=0), sum(spills), max(static, default=0) + shared_bytes, counts)
