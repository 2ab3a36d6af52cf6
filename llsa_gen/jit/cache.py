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

from filelock import FileLock

from llsa_gen.digest import digest_bytes
from llsa_gen.paths import cache_dir

LIBRARY = "kernel.so"
ENTRY = "entry.json"


@dataclass(frozen=True)
class CacheEntry:
    """One compiled kernel.

    Attributes:
        path: Its folder.
        record: What is known of it: slug, target, kernel, seconds, resources, toolchain.
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
        return sum(path.stat().st_size for path in self.path.glob("**/*") if path.is_file())


def kernels_dir() -> Path:
    """The folder that holds the entries."""
    return cache_dir() / "kernels"


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
        OSError: The cache folder cannot be written.
    """
    found = find(key)
    if found is not None:
        return found, True
    home = kernels_dir()
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / f"{key}.lock"):
        found = find(key)
        if found is not None:
            return found, True
        return _make(home, key, make), False


def entries() -> tuple[CacheEntry, ...]:
    """All sound entries, by folder name."""
    home = kernels_dir()
    folders = sorted(path for path in home.glob("*") if path.is_dir()) if home.is_dir() else []
    return tuple(entry for folder in folders if (entry := _read(folder)) is not None)


def clear(slug: str | None = None) -> int:
    """Removes entries, also broken ones when no slug is given; returns the bytes that became free."""
    home = kernels_dir()
    if slug is None:
        freed = sum(path.stat().st_size for path in home.glob("**/*") if path.is_file())
        shutil.rmtree(home, ignore_errors=True)
        return freed
    chosen = [entry for entry in entries() if entry.slug == slug]
    freed = sum(entry.bytes for entry in chosen)
    for entry in chosen:
        shutil.rmtree(entry.path, ignore_errors=True)
    return freed


def _make(home: Path, key: str, make: Callable[[Path], dict[str, Any]]) -> CacheEntry:
    staged = Path(tempfile.mkdtemp(prefix=f"{key}.making.", dir=home))
    try:
        record = make(staged)
        library = staged / LIBRARY
        record = {**record, "library_sha256": digest_bytes(library.read_bytes())}
        (staged / ENTRY).write_text(json.dumps(record, indent=1, sort_keys=True), encoding="utf-8")
        shutil.rmtree(home / key, ignore_errors=True)
        staged.rename(home / key)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return CacheEntry(home / key, record)


def _read(folder: Path) -> CacheEntry | None:
    """An entry whose library is what its record says; None otherwise."""
    try:
        record = json.loads((folder / ENTRY).read_text(encoding="utf-8"))
        sound = digest_bytes((folder / LIBRARY).read_bytes()) == record["library_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return CacheEntry(folder, record) if sound else None
