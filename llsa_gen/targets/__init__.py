# SPDX-License-Identifier: Apache-2.0
"""The registry of target machines: one module per name in ``TARGET_NAMES``, each with a ``TARGET``."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from llsa_gen.errors import InternalError, SpecError, did_you_mean, explain
from llsa_gen.spec.fields import TARGET_NAMES
from llsa_gen.targets.base import CPU_TARGETS, CPU_VARIABLE, NATIVE, Language, Rate, Target

__all__ = [
    "CPU_TARGETS",
    "CPU_VARIABLE",
    "NATIVE",
    "TARGET_NAMES",
    "Language",
    "Rate",
    "Target",
    "get_target",
    "list_targets",
]


def get_target(name: str | Target) -> Target:
    """The target of a name; a target is itself.

    Raises:
        SpecError: There is no such target.
    """
    if isinstance(name, Target):
        return name
    if isinstance(name, str) and name in TARGET_NAMES:
        return _load(name)
    hint = did_you_mean(name, TARGET_NAMES) or "write one of the names above"
    raise SpecError(explain("unknown target", where="target", value=name, allowed=TARGET_NAMES, hint=hint))


def list_targets() -> tuple[Target, ...]:
    """All targets, in canonical order."""
    return tuple(_load(name) for name in TARGET_NAMES)


@cache
def _load(name: str) -> Target:
    target = import_module(f"{__name__}.{name}").TARGET
    if not isinstance(target, Target) or target.name != name:
        raise InternalError(explain(f"targets/{name}.py must define TARGET = Target(name={name!r}, ...)"))
    return target
