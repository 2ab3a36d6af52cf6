# SPDX-License-Identifier: Apache-2.0
"""Which kernels a run needs, which of them lie in the cache, and how the others get there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llsa_gen.catalog import catalogue
from llsa_gen.codegen import KernelInstance, KernelPackage, render
from llsa_gen.evidence.budget import Budget
from llsa_gen.evidence.setting import Results, Setting
from llsa_gen.jit import build_kernel, cache, digest_with_schedule
from llsa_gen.schedule import Schedule, fits, space
from llsa_gen.spec import Spec
from llsa_gen.targets import get_target

MAIN = "pixel_dit"
"""The spec of the catalogue that is benchmarked and tuned."""
WORTH = ("attend", "attend_grad_kv", "attend_grad_q", "select", "invert_index", "merge_grad_kv", "delta", "coarsen")
"""Kinds of kernels in the order in which tuning them is worth it: by the time that they take."""


@dataclass(frozen=True)
class Wanted:
    """One kernel that a run can use.

    Attributes:
        package: Its package.
        kernel: The kernel, with the schedule in question.
        alternative: Whether only tuning wants it.
    """

    package: KernelPackage
    kernel: KernelInstance
    alternative: bool = False

    def is_built(self, target: str) -> bool:
        """Whether it lies in the cache; needs no compiler."""
        return cache.find(digest_with_schedule(self.package, self.kernel, get_target(target))) is not None


def main_spec() -> Spec:
    """The spec that is benchmarked and tuned."""
    return catalogue()[MAIN].spec


def needed(target: str) -> Iterator[Wanted]:
    """The kernels of the whole catalogue, the benchmarked spec first."""
    ranked = sorted(catalogue(), key=lambda name: name != MAIN)
    for package in (render(catalogue()[name].spec) for name in ranked):
        if target not in package.infeasible:
            yield from (Wanted(package, kernel) for kernel in package.kernels_for(target))


def alternatives(target: str) -> Iterator[Wanted]:
    """The kernels of the benchmarked spec, of both passes, with every other schedule that fits.

    What takes the most time comes first; and tiles near the solved one.
    """
    package = render(main_spec())
    for kernel in by_worth(package.kernels_for(target)):
        solved = dict(kernel.schedules)[target]
        others = [schedule for schedule in candidates(package, kernel, target) if schedule != solved]
        for schedule in sorted(
            others, key=lambda other: (abs(other.rows - solved.rows), abs(other.keys - solved.keys))
        ):
            yield Wanted(package, kernel.with_schedule(target, schedule), alternative=True)


def by_worth(kernels: Sequence[KernelInstance]) -> list[KernelInstance]:
    """The kernels of a target, those first that are the most worth tuning; of a kind, the finest level first."""
    finest_first = kernels[::-1]
    return sorted(finest_first, key=lambda kernel: WORTH.index(kernel.key.kind))


def candidates(package: KernelPackage, kernel: KernelInstance, target: str) -> list[Schedule]:
    """The schedules of a kernel that fit a target."""
    machine = get_target(target)
    every = dict.fromkeys(space(kernel.key, package.spec, machine))
    return [schedule for schedule in every if fits(kernel.key, package.spec, machine, schedule)]


def report(setting: Setting) -> Results:
    """Yields one line per needed kernel, then a summary with the command that would build what is missing."""
    missing = []
    for wanted in needed(setting.target):
        is_built = wanted.is_built(setting.target)
        if not is_built:
            missing.append(f"{wanted.package.slug}/{wanted.kernel.name}")
        yield {"slug": wanted.package.slug, "kernel": wanted.kernel.name, "built": is_built}
    tunable = [wanted for wanted in alternatives(setting.target) if wanted.is_built(setting.target)]
    yield {
        "target": setting.target,
        "missing": missing,
        "alternatives": len(tunable),
        "command": f"python tools/gpu_evidence.py --prepare {setting.target}" if missing else None,
    }


def prepare(target: str, budget: Budget) -> Iterator[dict[str, Any]]:
    """Builds what is missing in order of value until the time is over; needs compilers and no GPU.

    A schedule that a compiler refuses is reported and left out.

    Raises:
        ToolMissingError: A compiler is missing.
    """
    from llsa_gen.errors import CompileError

    for wanted in (*needed(target), *alternatives(target)):
        if wanted.is_built(target):
            continue
        if budget.left <= 0:
            return
        said = {"slug": wanted.package.slug, "kernel": wanted.kernel.name, "arguments": wanted.kernel.arguments(target)}
        try:
            made = build_kernel(wanted.package, wanted.kernel, target)
        except CompileError as error:
            if not wanted.alternative:
                raise
            yield said | {"refused": str(error)[-300:]}
        else:
            yield said | {"seconds": made.seconds, "resources": made.resources}
