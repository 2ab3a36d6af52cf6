# SPDX-License-Identifier: Apache-2.0
"""Tuning records: what was measured of the schedules of one kernel on one machine, and which of them is taken.

A record is a JSON file named by the kernel, the digest of what its schedules have in common, and the machine. It is
written beside its place and renamed after every schedule, so that it is whole at any moment.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from llsa_gen.digest import digest
from llsa_gen.environment import is_off
from llsa_gen.errors import InputError, InternalError, OutputError, StaleError, explain
from llsa_gen.jit.machine import Machine
from llsa_gen.paths import TUNING_VARIABLE, cache_dir, let_others_read
from llsa_gen.schedule import Schedule

SCHEMA = 1


@dataclass(frozen=True)
class Trial:
    """One schedule that was tried.

    Attributes:
        schedule: Which.
        seconds: ``median`` time and ``lowest`` one; empty where it was not timed.
        default: The same of the default schedule, in turn with it.
        why: Why it was not timed: what a compiler said of it, or how its results are wrong.
    """

    schedule: Schedule
    seconds: Mapping[str, float] = field(default_factory=dict)
    default: Mapping[str, float] = field(default_factory=dict)
    why: str = ""

    @property
    def ratio(self) -> float | None:
        """Its time over that of the default schedule, by medians or by the lowest times, whichever says less for it."""
        return max((self.seconds[kind] / self.default[kind] for kind in self.seconds), default=None)


@dataclass(frozen=True)
class Record:
    """What is known of one kernel.

    Attributes:
        kernel: Its name.
        identity: The digest of what its schedules have in common: source, structure, compiler, instruction set.
        machine: Where it was measured.
        toolchain: What it was built with, to be read.
        size: ``batch``, ``heads`` and ``tokens`` of the inputs.
        trials: The schedules tried so far.
        chosen: The schedule to take; None for the default.
        complete: Whether nothing is left to try.
        kept: Whether an older record, of other inputs, chose that; it holds until nothing is left to try.
    """

    kernel: str
    identity: str
    machine: Machine
    toolchain: Mapping[str, str]
    size: Mapping[str, int]
    trials: tuple[Trial, ...] = ()
    chosen: Schedule | None = None
    complete: bool = False
    kept: bool = False

    @property
    def name(self) -> str:
        """The name of its file."""
        return file_name(self.kernel, self.identity, self.machine)

    def trial_of(self, schedule: Schedule) -> Trial | None:
        """What is known of a schedule."""
        return next((trial for trial in self.trials if trial.schedule == schedule), None)

    def with_trial(self, trial: Trial) -> Record:
        """The same with another schedule tried, or one tried again."""
        others = (known for known in self.trials if known.schedule != trial.schedule)
        return replace(self, trials=(*others, trial))


_NAMED = re.compile(r"\w+-[0-9a-f]{32}-[0-9a-f]+\.json")
"""What `file_name` makes."""


def file_name(kernel: str, identity: str, machine: Machine) -> str:
    """The name of the file of a record."""
    return f"{kernel}-{identity}-{machine.digest}.json"


def records_dir() -> Path | None:
    """The folder of the records, or None where they are to be left alone."""
    if is_off(TUNING_VARIABLE):
        return None
    named = os.environ.get(TUNING_VARIABLE, "").strip()
    return Path(named).expanduser().absolute() if named else cache_dir() / "tuning"


def files(folder: Path) -> dict[Path, int]:
    """Bytes of every record in a folder, sound or broken; files with other names than `write` gives are left out."""
    found = [path for path in folder.glob("*.json") if _NAMED.fullmatch(path.name) and path.is_file()]
    return {path: path.stat().st_size for path in sorted(found)}


def require_dir() -> Path:
    """The folder of the records, for who works on them.

    Raises:
        InputError: They are switched off.
    """
    folder = records_dir()
    if folder is None:
        what, hint = "tuning records are switched off", f"unset {TUNING_VARIABLE}, or name a folder"
        raise InputError(explain(what, where=TUNING_VARIABLE, allowed="a folder", hint=hint))
    return folder


def is_named() -> bool:
    """Whether the folder was asked for by name, so that what cannot be used there is an error."""
    return bool(os.environ.get(TUNING_VARIABLE, "").strip())


def read(path: Path) -> Record:
    """The record in a file.

    Raises:
        StaleError: The file cannot be read, is cut short, or is of another version.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        sound = data.pop("sha256") == digest(data) and data.pop("schema") == SCHEMA
        found = _from_data(data) if sound else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, InternalError):
        found = None
    if found is None:
        what, hint = "a tuning record is cut short, changed or of another version", "remove it, and tune again"
        raise StaleError(explain(what, where=str(path), allowed="a file as `llsa-gen tune` writes it", hint=hint))
    return found


def write(record: Record, folder: Path) -> Path:
    """Writes a record into a folder, whole or not at all.

    Raises:
        OutputError: It cannot be written; an older record stays.
    """
    data = {"schema": SCHEMA, **asdict(record)}
    text = json.dumps({**data, "sha256": digest(data)}, indent=1, allow_nan=False) + "\n"
    place = folder / record.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, half = tempfile.mkstemp(prefix=".record.", dir=folder)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            let_others_read(Path(half))
            Path(half).replace(place)
        finally:
            Path(half).unlink(missing_ok=True)
    except OSError as error:
        what, allowed = "a tuning record could not be stored", "a folder with room that can be written"
        hint = f"free some space, or name another folder: {TUNING_VARIABLE}=DIR"
        raise OutputError(explain(what, where=str(place), value=str(error), allowed=allowed, hint=hint)) from error
    return place


def _from_data(data: dict[str, Any]) -> Record:
    chosen = data.pop("chosen")
    trials = tuple(Trial(**{**one, "schedule": Schedule(**one["schedule"])}) for one in data.pop("trials"))
    machine = Machine(**data.pop("machine"))
    return Record(**data, machine=machine, trials=trials, chosen=None if chosen is None else Schedule(**chosen))
