# SPDX-License-Identifier: Apache-2.0
"""What a compiled kernel is found by: digests of all that decides what is in it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from llsa_gen.codegen import KernelInstance, KernelPackage
from llsa_gen.digest import digest, digest_bytes
from llsa_gen.jit.architecture import architecture_of
from llsa_gen.jit.compile import ENTRY_FLAGS, flags
from llsa_gen.jit.toolchain import PINNED_TILELANG, PINNED_TVM, version_of
from llsa_gen.targets import Target

ABI = 1
"""Version of the way kernels are called, beyond what the texts of `_SPOKEN` say; raised when an old library could no
longer be called rightly."""


def digest_with_schedule(package: KernelPackage, kernel: KernelInstance, target: Target) -> str:
    """What a compiled kernel is found by: source, arguments, schedule, version of what lowers it, machine, flags, ABI.

    The C++ compiler's and nvcc's versions are in the record of an entry but not in its key, so that kernels which were
    built elsewhere are found where no compiler is installed.
    """
    return _digest_of(package, kernel, target, kernel.arguments(target.name))


def digest_without_schedule(package: KernelPackage, kernel: KernelInstance, target: Target) -> str:
    """What the tuning records of a kernel are found by: that which all of its schedules have in common."""
    return _digest_of(package, kernel, target, kernel.structure)


def _digest_of(package: KernelPackage, kernel: KernelInstance, target: Target, arguments: dict[str, Any]) -> str:
    return digest(
        {
            "abi": ABI,
            "arguments": arguments,
            "factory": kernel.factory,
            "flags": [*flags(target), *(ENTRY_FLAGS if target.language == "tvm" else ())],
            "language": _language_digest(target.language),
            "machine": architecture_of(target),
            "source": package.body(kernel.file(target.name)),
            **compiler_of(target.language),
        }
    )[:32]


@cache
def compiler_of(language: str) -> dict[str, str]:
    """The version of what lowers a language: the pinned one where it is not installed."""
    if language == "tvm":
        return {"tvm": version_of("apache-tvm") or PINNED_TVM}
    return {"tilelang": version_of("tilelang") or PINNED_TILELANG}


_SPOKEN = {
    "tilelang": ("flavour.py", "matmul.py", "lower.py"),
    "tvm": ("isa.py", "lanes.py", "loops.py", "lower_lanes.py", "tasks.py"),
}


@cache
def _language_digest(language: str) -> str:
    """The digest of what a kernel text is spoken in and lowered by."""
    here = Path(__file__).parent
    return digest_bytes(b"".join((here / name).read_bytes() for name in _SPOKEN[language]))
