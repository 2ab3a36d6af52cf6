# SPDX-License-Identifier: Apache-2.0
"""The machine that measured times hold for: its processor or GPU, its caches, and how many threads work."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from llsa_gen.digest import short_digest
from llsa_gen.jit.architecture import architecture_of
from llsa_gen.targets import Target, get_target

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


@dataclass(frozen=True)
class Machine:
    """What decides which schedule is the fastest, besides the kernel.

    Attributes:
        processor: Name of the CPU, or of the GPU.
        isa: Instruction set that kernels are built for, or architecture of the GPU.
        threads: Threads that a CPU kernel is spread over; 0 on a GPU.
        caches: Bytes of the data caches of a core by level, as far as the system says; none of a GPU.
    """

    processor: str
    isa: str
    threads: int
    caches: Mapping[str, int] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """A short name."""
        return short_digest(self.to_data())

    def to_data(self) -> dict[str, Any]:
        """All of it as plain data."""
        return asdict(self)

    def differs(self, other: Machine) -> str:
        """What another machine has otherwise, in words; empty where it is the same."""
        mine, theirs = self.to_data(), other.to_data()
        return ", ".join(f"{name} {theirs[name]}, here {mine[name]}" for name in mine if mine[name] != theirs[name])


def machine_of(target: str | Target) -> Machine:
    """The machine that runs kernels of a target in this process; imports torch.

    The C++ compiler is left out, as it is of what a kernel is found by: it makes no more than the loop over tiles.
    """
    import torch

    found = get_target(target)
    if found.is_cuda:
        return Machine(torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU", found.arch, 0)
    return Machine(processor(), architecture_of(found), torch.get_num_threads(), data_caches())


def may_be_here(machine: Machine, target: str | Target) -> bool:
    """Whether a machine may be the one of this process, as far as can be said without torch."""
    found = get_target(target)
    if found.is_cuda:
        return machine.isa == found.arch
    return machine == Machine(processor(), architecture_of(found), machine.threads, data_caches())


def processor() -> str:
    """The name of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


@cache
def data_caches() -> dict[str, int]:
    """Bytes of the caches that hold data, by level (``L1``, ``L2``, ...); empty where the system does not say."""
    found = {}
    for folder in sorted(_CACHES.glob("index*")):
        try:
            level, kind, size = ((folder / name).read_text(encoding="ascii").strip() for name in _FACTS)
        except OSError:
            continue
        amount = re.fullmatch(r"(\d+)([KMG]?)", size)
        if kind != "Instruction" and amount:
            found[f"L{level}"] = int(amount[1]) * _UNITS[amount[2]]
    return found


_FACTS = ("level", "type", "size")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
