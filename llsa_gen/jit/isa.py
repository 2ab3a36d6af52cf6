# SPDX-License-Identifier: Apache-2.0
"""The instruction set that CPU kernels are built for: one of a few levels, found on the machine they run on."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

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


def _processor_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return frozenset(line.partition(":")[2].split())
