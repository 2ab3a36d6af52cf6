# SPDX-License-Identifier: Apache-2.0
"""The cache of compiled kernels: content-addressed folders that appear whole or not at all.

An entry is a folder named by the digest of everything that decides what is in it. It is made in a temporary folder and
renamed, so that an interrupted build leaves nothing behind; a broken entry counts as a miss and is made again. Two
processes may build the same entry at once: one holds the lock, the other waits and finds it done.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from llsa_gen.digest import digest, digest_bytes
from llsa_gen.errors import InternalError, OutputError, explain
from llsa_gen.paths import CACHE_VARIABLE, cache_dir, compiled_templates_dir, let_others_read

LIBRARY = "kernel.so"
ENTRY = "entry.json"
_MAKING = ".making."


@dataclass(frozen=True)
class CacheEntry:
    """One compiled kernel.

    Attributes:
        path: Its folder.
        record: What is known of it: slug, target, architecture, kernel, seconds, resources, toolchain.
    """

    path: Path
    record: dict[str, Any]

    @property
    def library(self) -> Path:
        """The shared library."""
        return self.path / LIBRARY

    @property
    def slug(self) -> str:
        """The spec it was first built for."""
        return str(self.record.get("slug", ""))

    @property
    def target(self) -> str:
        """The target it was built for."""
        return str(self.record.get("target", ""))

    @property
    def bytes(self) -> int:
        """Size of the folder on disk."""
        return _size(self.path)


def kernels_dir() -> Path:
    """The folder that holds the entries."""
    return cache_dir() / "kernels"


def failed_dir() -> Path:
    """The folder that holds the sources that a compiler refused, one folder for each kernel."""
    return cache_dir() / "failed"


def failures() -> dict[Path, int]:
    """The folders of failed builds with their sizes."""
    return {path: _size(path) for path in sorted(failed_dir().glob("*"))}


def templates_size() -> int:
    """The bytes of compiled templates."""
    return _size(compiled_templates_dir())


def keep_failed(folder: Path, name: str) -> Path | None:
    """Moves what a failed build has made to a stable place, over what an earlier failure left there.

    Args:
        folder: Where the build took place.
        name: Name of the folder below `failed_dir`.

    Returns:
        The place, or None where it cannot be written: the failure itself matters more.
    """
    place = failed_dir() / name
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        folder.rename(place)
        let_others_read(place)
    except OSError:
        return None
    return place


def discard(key: str) -> bool:
    """Removes the entry of a key, which turned out not to be what it seems; returns whether that was possible."""
    try:
        with _lock(key):
            shutil.rmtree(kernels_dir() / key)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def find(key: str) -> CacheEntry | None:
    """The entry of a key, or None where there is none or it is broken."""
    return _read(kernels_dir() / key)


def ensure(key: str, make: Callable[[Path], dict[str, Any]]) -> tuple[CacheEntry, bool]:
    """The entry of a key, made when it is missing or broken.

    Args:
        key: The digest of everything that decides the content.
        make: Fills a folder with ``kernel.so`` and more, and returns the record.

    Returns:
        The entry, and whether it was there already.

    Raises:
        OutputError: The cache folder cannot be written.
    """
    found = find(key)
    if found is not None:
        return found, True
    home = kernels_dir()
    try:
        home.mkdir(parents=True, exist_ok=True)
        _sweep(home)
        with _lock(key):
            found = find(key)
            return (found, True) if found is not None else (_make(home, key, make), False)
    except OSError as error:
        what, allowed = "a compiled kernel could not be stored", "a folder with room that can be written"
        hint = f"free some space, or name another folder: {CACHE_VARIABLE}=DIR"
        raise OutputError(explain(what, where=str(home), value=str(error), allowed=allowed, hint=hint)) from error


def entries() -> tuple[CacheEntry, ...]:
    """All sound entries, by folder name."""
    return tuple(entry for folder in _folders() if (entry := _read(folder)) is not None)


def clear(slug: str | None = None) -> int:
    """Removes entries; without a slug also broken ones, what failed and killed builds left, and compiled templates.

    Builds that are going on are left alone.

    Returns:
        The bytes that became free.
    """
    before = _size_of_all()
    for folder in _folders() if slug is None else [entry.path for entry in entries() if entry.slug == slug]:
        shutil.rmtree(folder, ignore_errors=True)
    if slug is None:
        shutil.rmtree(failed_dir(), ignore_errors=True)
        shutil.rmtree(compiled_templates_dir(), ignore_errors=True)
        _sweep(kernels_dir())
    return before - _size_of_all()


def _folders() -> list[Path]:
    """The folders of entries, sound or not."""
    return sorted(path for path in kernels_dir().glob("*") if path.is_dir() and _MAKING not in path.name)


def _size_of_all() -> int:
    return sum(map(_size, (kernels_dir(), failed_dir(), compiled_templates_dir())))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("**/*") if path.is_file())


def _lock(key: str, timeout: float = -1) -> FileLock:
    """The lock of a key; its empty file stays, because removing it under somebody who waits would let two in."""
    folder = cache_dir() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{key}.lock", timeout=timeout)


def _sweep(home: Path) -> None:
    """Removes the folders of builds that were killed: those whose lock nobody holds."""
    for key in sorted({path.name.partition(".")[0] for path in home.glob(f"*{_MAKING}*")}):
        try:
            with _lock(key, timeout=0):
                for folder in home.glob(f"{key}{_MAKING}*"):
                    shutil.rmtree(folder, ignore_errors=True)
        except Timeout:
            continue


def _make(home: Path, key: str, make: Callable[[Path], dict[str, Any]]) -> CacheEntry:
    staged = Path(tempfile.mkdtemp(prefix=f"{key}{_MAKING}", dir=home))
    try:
        record = make(staged)
        record = {**record, "library_sha256": digest_bytes((staged / LIBRARY).read_bytes())}
        record = {**record, "record_sha256": _record_digest(record)}
        (staged / ENTRY).write_text(json.dumps(record, indent=1, sort_keys=True), encoding="utf-8")
        let_others_read(staged)
        return _place(staged, home / key) or CacheEntry(home / key, record)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _place(staged: Path, place: Path) -> CacheEntry | None:
    """Renames a finished folder to its place; returns the entry that somebody else put there first, if so."""
    found = _read(place)
    if found is None:
        if place.is_dir():
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink(missing_ok=True)
        try:
            staged.rename(place)
        except OSError:
            found = _read(place)
            if found is None:
                raise
    return found


def _record_digest(record: dict[str, Any]) -> str:
    """The digest of a record without its own digest."""
    return digest({name: value for name, value in record.items() if name != "record_sha256"})


def _read(folder: Path) -> CacheEntry | None:
    """An entry whose library is what its record says; None otherwise."""
    try:
        record = dict(json.loads((folder / ENTRY).read_text(encoding="utf-8")))
        sound = digest_bytes((folder / LIBRARY).read_bytes()) == record["library_sha256"]
        sound = sound and record["record_sha256"] == _record_digest(record)
    except (OSError, ValueError, KeyError, TypeError, RecursionError, InternalError):
        return None
    return CacheEntry(folder, record) if sound else None
