# SPDX-License-Identifier: Apache-2.0
"""Files of named specs: ``[specs.NAME]`` tables in TOML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from llsa_gen.errors import SpecError, did_you_mean, explain
from llsa_gen.spec.model import Spec

ABOUT = "about"
"""A field of a table that describes the spec for people and is not part of it."""

_SECTION = "specs"
_FILE = "a TOML file of specs in UTF-8"
_CHECK_PATH = "check the path and whether the file may be read"
_MEND = "bring the file into the form above"
_EXAMPLE = "a table such as [specs.my_model] with fields such as block = 16"


@dataclass(frozen=True)
class SpecEntry:
    """A named spec of a file.

    Attributes:
        name: Name of its table.
        spec: The spec itself.
        about: One line for people, or empty.
    """

    name: str
    spec: Spec
    about: str = ""


def load_entries(path: str | PathLike[str], name: str | None = None) -> dict[str, SpecEntry]:
    """Reads a file of named specs, in the order of the file.

    Args:
        path: The file.
        name: The only spec to read, so that faults of others do not matter; all of them without it.

    Raises:
        SpecError: The file cannot be read, has no spec of that name, or holds anything but valid specs; the message
            names the file and every table that is wrong.
    """
    file = Path(path)
    tables = _tables(_read(file), file)
    if name is not None:
        require_name(path, name, tables)
        return {name: _entry(name, tables[name], file)}
    found: dict[str, SpecEntry] = {}
    wrong: list[SpecError] = []
    for each, table in tables.items():
        try:
            found[each] = _entry(each, table, file)
        except SpecError as error:
            wrong.append(error)
    if wrong:
        raise _joined(wrong, len(tables))
    return found


def _joined(wrong: Sequence[SpecError], count: int) -> SpecError:
    """One error for all wrong specs of a file."""
    if len(wrong) == 1:
        return wrong[0]
    return SpecError("\n\n".join([f"{len(wrong)} of {count} specs are wrong", *map(str, wrong)]))


def load_specs(path: str | PathLike[str]) -> dict[str, Spec]:
    """Reads the specs of a file by name; see :func:`load_entries`."""
    return {name: entry.spec for name, entry in load_entries(path).items()}


def load_spec(path: str | PathLike[str], name: str) -> Spec:
    """Reads one named spec of a file.

    Raises:
        SpecError: As :func:`load_entries`; other specs of the file may be wrong.
    """
    return load_entries(path, name)[name].spec


def require_name(path: str | PathLike[str], name: str, names: Iterable[str]) -> None:
    """Refuses a name that a file does not have.

    Raises:
        SpecError: ``name`` is none of ``names``, which the file has.
    """
    known = list(names)
    if name not in known:
        hint = did_you_mean(name, known) or "write one of the names above, or leave the name out for all of them"
        what = f"there is no spec named {name!r}"
        raise SpecError(explain(what, where=f"file {path}", value=name, allowed=known, hint=hint))


def _read(file: Path) -> dict[str, Any]:
    import tomllib

    content = _bytes(file)
    try:
        return tomllib.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        what, around = f"the file is not UTF-8 text (byte {error.start})", content[max(error.start - 10, 0) :][:20]
        raise _unreadable(file, what, around, _FILE, "save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise _unreadable(file, f"the file is not valid TOML: {error}", _line_of(error, content)) from error
    except RecursionError:
        raise _unreadable(file, "the file is nested too deeply", f"{len(content)} bytes") from None


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        what = "there is no such file" if isinstance(error, FileNotFoundError) else "the file cannot be read"
        raise _unreadable(file, what, error.strerror, _FILE, _CHECK_PATH) from error


def _unreadable(file: Path, what: str, value: object, allowed: str = _EXAMPLE, hint: str = _MEND) -> SpecError:
    return SpecError(explain(what, where=f"file {file}", value=value, allowed=allowed, hint=hint))


def _line_of(error: ValueError, content: bytes) -> str:
    """The line that a message of tomllib is about; the last one where it speaks of the end of the file."""
    lines = content.decode("utf-8").splitlines() or [""]
    found = re.search(r"at line (\d+)", str(error))
    return lines[min(int(found[1]), len(lines)) - 1 if found else -1]


def _tables(data: Mapping[str, Any], file: Path) -> Mapping[str, Any]:
    """The tables under ``specs``, which must be all that the file holds."""
    where = f"file {file}"
    for name in data:
        if name != _SECTION:
            hint = did_you_mean(name, [_SECTION]) or f"put fields into a table, for example [{_SECTION}.my_model]"
            raise SpecError(explain(f"unknown entry {name!r}", where=where, value=name, allowed=_EXAMPLE, hint=hint))
    tables = data.get(_SECTION, {})
    if not isinstance(tables, dict) or not tables:
        raise _unreadable(file, "the file holds no specs", tables)
    return tables


def _entry(name: str, table: Any, file: Path) -> SpecEntry:
    where = f"file {file}, table [{_SECTION}.{name}]"
    if not isinstance(table, dict):
        hint = f"fields belong into a named table, for example [{_SECTION}.my_model]"
        raise SpecError(explain("a spec must be a table", where=where, value=table, allowed=_EXAMPLE, hint=hint))
    about = table.get(ABOUT, "")
    if not isinstance(about, str) or "\n" in about:
        what, hint = f"{ABOUT} must be one line of text", f'write {ABOUT} = "what it is for"'
        raise SpecError(explain(what, where=where, value=about, allowed="a string", hint=hint))
    try:
        spec = Spec.from_fields({field: value for field, value in table.items() if field != ABOUT})
    except SpecError as error:
        raise SpecError(f"{where}:\n{error}") from error
    return SpecEntry(name, spec, about)
