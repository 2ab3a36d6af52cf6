# SPDX-License-Identifier: Apache-2.0
"""The instruction set that CPU kernels are built for: one of a few levels, found on the machine they run on."""

from __future__ import annotations

import math
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from llsa_gen.errors import UnsupportedError, explain

LINE_BYTES = 64
"""Bytes of a cache line of x86-64 and of most aarch64 processors; on others kernels are slower, not wrong."""

_LEVELS = (
    ("x86-64-v4", {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
    ("x86-64-v3", {"avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"}),
    ("x86-64-v2", {"cx16", "popcnt", "sse4_1", "sse4_2", "ssse3"}),
)
"""Levels of the x86-64 psABI with the processor flags (Linux names) that each adds."""


@cache
def host_isa() -> str:
    """The highest level that this machine runs; the bare architecture where levels do not apply."""
    machine = platform.machine()
    if machine not in ("x86_64", "AMD64"):
        return machine
    flags = _processor_flags()
    found = "x86-64"
    for name, needed in reversed(_LEVELS):
        if not needed <= flags:
            break
        found = name
    return found


def compile_flags(isa: str) -> tuple[str, ...]:
    """The compiler flags for a level; bare architectures take the compiler's default."""
    wide = ("-mprefer-vector-width=512",) if isa == "x86-64-v4" else ()
    return (f"-march={isa}", *wide) if isa.startswith("x86-64") else ()


@dataclass(frozen=True)
class RegisterTile:
    """A part of a matrix whose elements are summed up in registers.

    Attributes:
        rows: Rows of the tile.
        columns: Columns of the tile, whole vectors.
        vector: Elements of a vector.
    """

    rows: int
    columns: int
    vector: int


@dataclass(frozen=True)
class Lanes:
    """What the vector unit of a processor offers.

    Attributes:
        width: fp32 numbers in a register.
        registers: Vector registers.
    """

    width: int
    registers: int

    def tile(self, rows: int, columns: int) -> RegisterTile:
        """The register tile of a matrix with the most products per number read, whose sums take half of the registers.

        It divides the matrix.
        """
        vector = math.gcd(columns, self.width)
        offered = [
            (m, n)
            for m in range(1, rows + 1)
            for n in range(1, columns // vector + 1)
            if rows % m == 0 and columns // vector % n == 0 and m * n <= self.registers // 2
        ]
        m, n = max(offered, key=lambda tile: (tile[0] * tile[1] / (tile[0] + tile[1]), tile))
        return RegisterTile(m, n * vector, vector)

    def square(self, rows: int, columns: int) -> int:
        """Side of the largest square that divides a matrix and whose rows fit in a register."""
        return math.gcd(rows, columns, self.width)


@dataclass(frozen=True)
class Vectors:
    """The vector unit that a level has, and how LLVM is told of it.

    Attributes:
        width: fp32 numbers in a register.
        registers: Vector registers.
        triple: LLVM's name of the system.
        cpu: LLVM's name of the processor.
        attributes: Further LLVM features.
    """

    width: int
    registers: int
    triple: str
    cpu: str
    attributes: tuple[str, ...] = ()


_X86 = "x86_64-unknown-linux-gnu"
_VECTORS = {
    "x86-64-v4": Vectors(16, 32, _X86, "x86-64-v4", ("-prefer-256-bit",)),
    "x86-64-v3": Vectors(8, 16, _X86, "x86-64-v3"),
    "x86-64-v2": Vectors(4, 16, _X86, "x86-64-v2"),
    "x86-64": Vectors(4, 16, _X86, "x86-64"),
    "aarch64": Vectors(4, 32, "aarch64-unknown-linux-gnu", "generic", ("+neon",)),
}
ISAS = tuple(_VECTORS)
"""The instruction sets that there are kernels for, the widest first."""


def executable_isas() -> tuple[str, ...]:
    """The instruction sets with kernels that this machine runs, the widest first."""
    host = host_isa()
    if not host.startswith("x86-64"):
        return tuple(isa for isa in ISAS if isa == host)
    return tuple(isa for isa in ISAS[ISAS.index(host) :] if isa.startswith("x86-64"))


def vectors_of(isa: str) -> Vectors:
    """The vector unit of an instruction set.

    Raises:
        UnsupportedError: There are no kernels for it.
    """
    if isa not in _VECTORS:
        hint = "use a GPU target, or the target c, which any C++ compiler serves"
        what = "there are no CPU kernels for this processor"
        raise UnsupportedError(explain(what, where="target cpu", value=isa, allowed=ISAS, hint=hint))
    return _VECTORS[isa]


def _processor_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return frozenset(line.partition(":")[2].split())
