# SPDX-License-Identifier: Apache-2.0
"""The kernels of a package with the schedules that tuning found for this machine."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llsa_gen.codegen import KernelInstance, KernelPackage
from llsa_gen.errors import StaleError, explain
from llsa_gen.jit.identity import kernel_identity
from llsa_gen.jit.machine import machine_of
from llsa_gen.jit.records import file_name, is_named, read, records_dir
from llsa_gen.paths import TUNING_VARIABLE
from llsa_gen.schedule import Schedule, fits
from llsa_gen.targets import get_target

_log = logging.getLogger("llsa_gen")
_SAID: set[str] = set()
"""What this process has said already."""


def tuned(package: KernelPackage, target: str) -> KernelPackage:
    """A package whose kernels have the schedules of their records; those without one keep the default.

    A record that was made on another machine, that is broken or whose schedule is not offered any more is left alone,
    which one line of the log says; where the folder of the records was named (`TUNING_VARIABLE`), it is refused.

    Raises:
        StaleError: Such a record lies in a folder that was named.
    """
    folder = records_dir()
    names = [] if folder is None else _names(folder)
    if folder is None or not names or target in package.infeasible:
        return package
    kernels, ignored = [], list[StaleError]()
    for kernel in package.kernels:
        try:
            chosen = _chosen(package, kernel, target, folder, names)
        except StaleError as error:
            if is_named():
                raise
            ignored.append(error)
            chosen = None
        kernels.append(kernel if chosen is None else kernel.with_schedule(target, chosen))
    if ignored:
        _say(package, target, ignored)
    return replace(package, kernels=tuple(kernels))


def _names(folder: Path) -> list[str]:
    """The files of a folder; none where there is no such folder."""
    try:
        return [path.name for path in folder.iterdir()]
    except OSError:
        return []


def _chosen(
    package: KernelPackage, kernel: KernelInstance, target: str, folder: Path, names: Sequence[str]
) -> Schedule | None:
    """The schedule of the record of a kernel, or None where there is none or where it is the default.

    Raises:
        StaleError: There are only records that cannot be used.
    """
    machine = get_target(target)
    identity = kernel_identity(package, kernel, machine)
    known = sorted(name for name in names if f"-{identity}-" in name and name.endswith(".json"))
    if not known:
        return None
    here = machine_of(target)
    own = file_name(kernel.name, identity, here)
    path = folder / (own if own in known else known[0])
    record = read(path)
    hint = f"tune here: llsa-gen tune --spec {package.slug}, or leave records alone: {TUNING_VARIABLE}=0"
    if (record.machine, record.identity) != (here, identity):
        what = f"a tuning record is of another machine: {here.differs(record.machine) or 'of another kernel'}"
        raise StaleError(explain(what, where=str(path), allowed="a record that was made here", hint=hint))
    if record.chosen is None or fits(kernel.key, package.spec, machine, record.chosen):
        return record.chosen
    what = "the schedule of a tuning record is not offered any more"
    raise StaleError(
        explain(what, where=str(path), value=record.chosen, allowed="one of the kernel's space", hint=hint)
    )


def _say(package: KernelPackage, target: str, ignored: Sequence[StaleError]) -> None:
    """One line, once."""
    reason = str(ignored[0]).splitlines()[0]
    line = f"{len(ignored)} tuning records of {package.slug} for {target} are left alone: {reason}"
    if line not in _SAID:
        _SAID.add(line)
        _log.warning("%s (tune here: llsa-gen tune --spec %s)", line, package.slug)
