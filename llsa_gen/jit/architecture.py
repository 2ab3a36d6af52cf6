# SPDX-License-Identifier: Apache-2.0
"""What kernels are compiled for: the architecture of a GPU, or an instruction set of CPUs.

A CPU target is native, which means the widest instruction set that this machine executes, or names another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from llsa_gen.errors import InputError, SpecError, UnsupportedError, did_you_mean, explain
from llsa_gen.jit.isa import ISAS, executable_isas, host_isa
from llsa_gen.targets import NATIVE, Target

HOST, ALL = "host", "all"
"""Words for instruction sets: that of this machine, and all of its architecture."""


def architecture_of(target: Target) -> str:
    """The architecture that kernels of a target are compiled for, such as ``x86-64-v3`` or ``sm_90a``."""
    return host_isa() if target.arch == NATIVE else target.arch


def for_isa(target: Target, isa: str | None) -> Target:
    """A CPU target with an instruction set; the target itself where none is given.

    Raises:
        InputError: The target has no instruction set to choose.
        SpecError: There are no kernels for it.
    """
    if isa is None:
        return target
    if not target.has_isa:
        raise no_choice(target.name, isa)
    require_known(isa)
    return replace(target, arch=isa)


def require_known(isa: str) -> None:
    """Refuses an instruction set that there are no kernels for.

    Raises:
        SpecError: There are none.
    """
    if isa not in ISAS:
        what, hint = "there are no CPU kernels for this instruction set", did_you_mean(isa, ISAS)
        allowed = f"{', '.join(ISAS)}; for `llsa-gen build` also {HOST} and {ALL}"
        raise SpecError(explain(what, where="isa", value=isa, allowed=allowed, hint=hint or _served_here()))


def no_choice(targets: str, isa: str) -> InputError:
    """The error of an instruction set where there are no kernels for CPUs."""
    what, where = "only kernels of the target cpu are built for an instruction set that can be chosen", "isa"
    hint = f"leave the instruction set out, or add the target cpu: --target cpu --isa {isa}"
    return InputError(explain(what, where=where, value=f"{isa}, for {targets}", allowed="the target cpu", hint=hint))


def isas_named(words: Sequence[str]) -> tuple[str, ...]:
    """Instruction sets out of repeated and comma-separated words; `HOST` and `ALL` stand for those they mean."""
    names = [name.strip() for word in words for name in word.split(",")]
    means = {HOST: (host_isa(),), ALL: linkable_isas() or (host_isa(),)}
    return tuple(dict.fromkeys(isa for name in names for isa in means.get(name, (name,))))


def linkable_isas() -> tuple[str, ...]:
    """The instruction sets that this machine's C++ compiler serves, the widest first: those of its architecture.

    It need not execute them.
    """
    return tuple(isa for isa in ISAS if _family(isa) == _family(host_isa()))


def executable_targets(target: Target) -> tuple[Target, ...]:
    """A CPU target once for each instruction set that this machine executes, the widest first; any other one itself."""
    if not target.has_isa or target.arch != NATIVE:
        return (target,)
    return tuple(replace(target, arch=isa) for isa in executable_isas()) or (target,)


def require_executable(target: Target) -> None:
    """Refuses kernels that would end this process with an illegal instruction.

    Raises:
        UnsupportedError: The processor lacks the instruction set.
    """
    if target.has_isa and target.arch not in (NATIVE, *executable_isas()):
        what = "this processor does not execute the instruction set of these kernels"
        hint = f"build them for {host_isa()}, and load those"
        raise UnsupportedError(
            explain(what, where=f"target {target.name}", value=target.arch, allowed=executable_isas(), hint=hint)
        )


def _served_here() -> str:
    """What to build for on this machine, in words."""
    return f"try {host_isa()}" if host_isa() in ISAS else "use the target c, which any C++ compiler serves"


def _family(isa: str) -> str:
    return "x86-64" if isa.startswith("x86-64") else isa
