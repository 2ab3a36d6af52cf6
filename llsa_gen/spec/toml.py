# SPDX-License-Identifier: Apache-2.0
"""Files of named specs: ``[specs.NAME]`` tables in TOML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from llsa_gen.errors import SpecError, did_you_mean, explain
from llsa_gen.spec.model import Spec

ABOUT = "about"
"""A field of a table that describes the spec for people and is not part of it."""

_SECTION = "specs"
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


def load_entries(path: str | PathLike[str]) -> dict[str, SpecEntry]:
    """Reads a file of named specs, in the order of the file.

    Raises:
        SpecError: The file cannot be read or holds anything but valid specs; the message names file and table.
    """
    file = Path(path)
    tables = _tables(_read(file), file)
    return {name: _entry(name, table, file) for name, table in tables.items()}


def load_specs(path: str | PathLike[str]) -> dict[str, Spec]:
    """Reads the specs of a file by name; see :func:`load_entries`."""
    return {name: entry.spec for name, entry in load_entries(path).items()}


def load_spec(path: str | PathLike[str], name: str) -> Spec:
    """Reads one named spec of a file.

    Raises:
        SpecError: As :func:`load_entries`, or the file has no such name.
    """
    specs = load_specs(path)
    if name in specs:
        return specs[name]
    what = f"there is no spec named {name!r}"
    hint = did_you_mean(name, specs)
    raise SpecError(explain(what, where=f"file {path}", allowed=", ".join(specs) or "no names", hint=hint))


def _read(file: Path) -> dict[str, Any]:
    import tomllib

    where = f"file {file}"
    try:
        return tomllib.loads(file.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise SpecError(
            explain("there is no such file", where=where, allowed="a TOML file of specs", hint=_CHECK_PATH)
        ) from None
    except OSError as error:
        raise SpecError(
            explain("the file cannot be read", where=where, value=error.strerror, hint=_CHECK_PATH)
        ) from error
    except UnicodeDecodeError as error:
        what = f"the file is not UTF-8 text (byte {error.start})"
        raise SpecError(explain(what, where=where, hint="save it as UTF-8")) from error
    except tomllib.TOMLDecodeError as error:
        raise SpecError(
            explain(f"the file is not valid TOML: {error}", where=where, allowed=_EXAMPLE, hint=_MEND)
        ) from error
    except RecursionError:
        raise SpecError(explain("the file is nested too deeply", where=where, allowed=_EXAMPLE, hint=_MEND)) from None


def _tables(data: Mapping[str, Any], file: Path) -> Mapping[str, Any]:
    """The tables under ``specs``, which must be all that the file holds."""
    where = f"file {file}"
    for name in data:
        if name != _SECTION:
            hint = did_you_mean(name, [_SECTION]) or f"put fields into a table, for example [{_SECTION}.my_model]"
            raise SpecError(explain(f"unknown entry {name!r}", where=where, allowed=_EXAMPLE, hint=hint))
    tables = data.get(_SECTION, {})
    if not isinstance(tables, dict) or not tables:
        raise SpecError(explain("the file holds no specs", where=where, allowed=_EXAMPLE, hint=_MEND))
    return tables


def _entry(name: str, table: Any, file: Path) -> SpecEntry:
    where = f"file {file}, table [{_SECTION}.{name}]"
    if not isinstance(table, dict):
        hint = f"fields belong into a named table, for example [{_SECTION}.my_model]"
        raise SpecError(explain("a spec must be a table", where=where, value=table, allowed=_EXAMPLE, hint=hint))
    about = table.get(ABOUT, "")
    if not isinstance(about, str) or "\n" in about:
        raise SpecError(explain(f"{ABOUT} must be one line of text", where=where, value=about, allowed="a string"))
    try:
        spec = Spec.from_fields({field: value for field, value in table.items() if field != ABOUT})
    except SpecError as error:
        raise SpecError(f"{where}:\n{error}") from error
    return SpecEntry(name, spec, about)
