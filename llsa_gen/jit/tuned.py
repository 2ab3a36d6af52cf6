# SPDX-License-Identifier: Apache-2.0
"""The kernels of a package with the schedules that tuning found for this machine."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from llsa_gen.codegen import KernelInstance, KernelPackage
from llsa_gen.errors import StaleError, explain
from llsa_gen.jit.identity import digest_without_schedule
from llsa_gen.jit.machine import Machine, machine_of, may_be_here
from llsa_gen.jit.records import Record, file_name, is_named, read, records_dir
from llsa_gen.paths import TUNING_VARIABLE
from llsa_gen.schedule import Schedule, fits
from llsa_gen.targets import Target, get_target

_log = logging.getLogger("llsa_gen")
_SAID: set[str] = set()
"""What this process has said already."""


def tuned(package: KernelPackage, target: str | Target, here: Machine | None = None) -> KernelPackage:
    """A package whose kernels have the schedules of their records; those without one keep the default.

    A record of another machine counts as none, which one line of the log says. So does one of this machine that is
    broken or whose schedule is not offered any more; where the folder of the records was named (`TUNING_VARIABLE`),
    that is refused.

    Args:
        package: Any package.
        target: The target, or its name.
        here: The machine; the one of this process when not given, for which torch is asked if there are records.

    Raises:
        StaleError: A record of this machine in a folder that was named cannot be used.
    """
    folder, machine = records_dir(), get_target(target)
    names = [] if folder is None else _names(folder)
    if folder is None or not names or machine.name in package.infeasible:
        return package
    found, ignored = dict[str, KernelInstance](), list[StaleError]()
    for kernel in package.kernels_for(machine):
        try:
            chosen = _chosen(package, kernel, machine, folder, names, here)
        except _ForeignError as error:
            ignored.append(error)
            chosen = None
        except StaleError as error:
            if is_named():
                raise
            ignored.append(error)
            chosen = None
        if chosen is not None:
            found[kernel.name] = kernel.with_schedule(machine.name, chosen)
    if ignored:
        _say(package, machine.label, ignored)
    return replace(package, kernels=tuple(found.get(kernel.name, kernel) for kernel in package.kernels))


def machines_on_record(package: KernelPackage, target: str | Target) -> tuple[Machine, ...]:
    """The machines of the records of a package that may be this one; which one it is, torch alone could tell.

    They have its processor and caches and any number of threads, or are GPUs of the architecture.
    """
    folder, found = records_dir(), get_target(target)
    names = [] if folder is None else _names(folder)
    if folder is None or not names or found.name in package.infeasible:
        return ()
    machines = {
        record.machine.digest: record.machine
        for kernel in package.kernels_for(found)
        for name in _of_kernel(names, digest_without_schedule(package, kernel, found))
        if (record := _read_or_none(folder / name)) is not None
    }
    return tuple(one for one in machines.values() if may_be_here(one, found))


def _read_or_none(path: Path) -> Record | None:
    try:
        return read(path)
    except StaleError:
        return None


class _ForeignError(StaleError):
    """There are only records of other machines."""


def _of_kernel(names: Sequence[str], identity: str) -> list[str]:
    """The files of the records of a kernel."""
    return sorted(name for name in names if f"-{identity}-" in name and name.endswith(".json"))


def _names(folder: Path) -> list[str]:
    """The files of a folder; none where there is no such folder."""
    try:
        return [path.name for path in folder.iterdir()]
    except OSError:
        return []


def _chosen(
    package: KernelPackage,
    kernel: KernelInstance,
    machine: Target,
    folder: Path,
    names: Sequence[str],
    here: Machine | None,
) -> Schedule | None:
    """The schedule of the record of a kernel, or None where there is none or where it is the default.

    Raises:
        StaleError: The record of this machine cannot be used.
        _ForeignError: There are records, and none under the name of this machine.
    """
    identity = digest_without_schedule(package, kernel, machine)
    known = _of_kernel(names, identity)
    if not known:
        return None
    here = here or machine_of(machine)
    own = file_name(kernel.name, identity, here)
    path = folder / own
    hint = f"tune here: llsa-gen tune --spec {package.slug}, or leave records alone: {TUNING_VARIABLE}=0"
    if own not in known:
        raise _ForeignError(explain("a tuning record is of another machine", where=str(folder / known[0]), hint=hint))
    record = read(path)
    if (record.machine, record.identity) != (here, identity):
        what = f"a tuning record is of another machine: {here.differs(record.machine) or 'of another kernel'}"
        raise StaleError(explain(what, where=str(path), allowed="a record that was made here", hint=hint))
    if record.chosen is None or fits(kernel.key, package.spec, machine, record.chosen):
        return record.chosen
    what = "the schedule of a tuning record is not offered any more"
    raise StaleError(
        explain(what, where=str(path), value=record.chosen, allowed="one of the kernel's space", hint=hint)
    )


def _say(package: KernelPackage, where: str, ignored: Sequence[StaleError]) -> None:
    """One line, once."""
    reason = str(ignored[0]).splitlines()[0]
    line = f"{len(ignored)} tuning records of {package.slug} for {where} are left alone: {reason}"
    if line not in _SAID:
        _SAID.add(line)
        _log.warning("%s (tune here: llsa-gen tune --spec %s)", line, package.slug)
