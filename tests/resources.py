# SPDX-License-Identifier: Apache-2.0
"""What the GPU kernels of the catalogue take, as compilers say it, and the committed snapshot of that."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from llsa_gen.catalog import catalogue
from llsa_gen.codegen import render
from llsa_gen.jit import BuiltKernel, build, toolchain
from llsa_gen.targets import list_targets

SNAPSHOT = Path(__file__).parent / "data" / "resources.json"
COMMAND = "tools/snapshot_resources.py"
GPU_TARGETS = tuple(target.name for target in list_targets() if target.is_cuda)
REGISTERS_APART = 8
"""Registers by which a kernel may differ from the snapshot: releases of nvcc allocate them differently."""

Taken = dict[str, Any]
Flat = dict[tuple[str, str, str], Taken]
"""By target, slug and kernel: ``arguments``, ``registers``, ``spill_bytes``, ``shared_bytes`` and ``instructions``."""


def read() -> Flat:
    """The committed snapshot."""
    data = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
    return {
        (target, slug, kernel): taken
        for target, packages in data["kernels"].items()
        for slug, kernels in packages.items()
        for kernel, taken in kernels.items()
    }


def write(found: Flat) -> None:
    """Replaces the snapshot."""
    nested: dict[str, Any] = {}
    for (target, slug, kernel), taken in sorted(found.items()):
        nested.setdefault(target, {}).setdefault(slug, {})[kernel] = taken
    here = toolchain.describe()
    made = {"nvcc": here.nvcc.version if here.nvcc else None, "tilelang": here.tilelang}
    SNAPSHOT.parent.mkdir(exist_ok=True)
    text = json.dumps({"compilers": made, "kernels": nested}, indent=1, sort_keys=True)
    SNAPSHOT.write_text(text + "\n", encoding="utf-8")


def expected(names: Iterable[str], targets: Iterable[str]) -> Iterator[tuple[tuple[str, str, str], Taken]]:
    """The kernels of specs with their arguments, without building anything."""
    chosen = tuple(names)
    for target in targets:
        for package in (render(catalogue()[name].spec) for name in chosen):
            for kernel in package.kernels_for(target):
                yield (target, package.slug, kernel.name), kernel.arguments(target)


@cache
def compiled(name: str, target: str) -> tuple[BuiltKernel, ...]:
    """The compiled kernels of a spec of the catalogue."""
    return build(catalogue()[name].spec, target)


def measure(names: Iterable[str], targets: Iterable[str], say: Callable[[str], None] = lambda line: None) -> Flat:
    """Compiles and reads what the kernels take."""
    chosen = tuple(names)
    arguments = dict(expected(chosen, targets))
    found: Flat = {}
    for target in dict.fromkeys(target for target, _, _ in arguments):
        for name in chosen:
            slug = catalogue()[name].spec.slug
            say(f"{target} {slug}")
            for kernel in compiled(name, target):
                assert kernel.resources is not None
                key = (target, slug, kernel.name)
                found[key] = {"arguments": arguments[key], **asdict(kernel.resources)}
    return found


def differences(before: Flat, after: Flat, *, registers_apart: int = 0) -> list[str]:
    """What changed, one line per number: ``target slug kernel: registers 62 -> 70``."""
    lines = []
    for key in sorted(before.keys() | after.keys()):
        label = " ".join(key)
        if key not in before or key not in after:
            lines.append(f"{label}: {'gone' if key in before else 'not in the snapshot'}")
            continue
        old, new = _numbers(before[key]), _numbers(after[key])
        for name in sorted(old.keys() | new.keys()):
            apart = registers_apart if name == "registers" else 0
            if name not in old or name not in new or abs(old[name] - new[name]) > apart:
                lines.append(f"{label}: {name} {old.get(name)} -> {new.get(name)}")
    return lines


def _numbers(taken: Taken) -> dict[str, int]:
    """All numbers of one kernel side by side; words among its arguments are part of its name already."""
    arguments = {name: value for name, value in taken["arguments"].items() if isinstance(value, int)}
    sizes = {name: taken[name] for name in ("registers", "spill_bytes", "shared_bytes")}
    instructions: dict[str, int] = taken["instructions"]
    return sizes | arguments | instructions
