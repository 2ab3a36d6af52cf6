# SPDX-License-Identifier: Apache-2.0
"""Writing a generated package: staged beside its place, then renamed; files that do not change are not touched."""

from __future__ import annotations

import errno
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import time

from llsa_gen.codegen.package import KernelPackage
from llsa_gen.errors import OutputError, explain

LEFTOVER_AGE = 3600.0
"""Seconds after which a staging folder is taken for the leftover of a write that was killed."""
_OURS = (".py", ".json")
"""Endings of files that belong to the generator; others in a package folder are kept."""
BYTECODE = "__pycache__"
"""The folder in which Python keeps what it compiled."""


@dataclass(frozen=True)
class WriteResult:
    """What a write did, or would do.

    Attributes:
        path: The folder of the package.
        written: Names of the files that are new, changed or removed.
        unchanged: Whether nothing had to be written.
    """

    path: Path
    written: tuple[str, ...]

    @property
    def unchanged(self) -> bool:
        """Whether every file is there already, to the byte."""
        return not self.written


def write(package: KernelPackage, parent: Path, *, dry_run: bool = False) -> WriteResult:
    """Writes a package into ``parent/slug``.

    Args:
        package: What to write.
        parent: The folder of generated packages; made when it is missing.
        dry_run: Only say what would be written.

    Raises:
        OutputError: The folder cannot be written; nothing is half written.
    """
    place = parent / package.slug
    changed = tuple(sorted(_changed(package, place)))
    result = WriteResult(place, changed)
    if result.unchanged or dry_run:
        return result
    try:
        _replace(package, place)
    except OSError as error:
        hint = "choose a folder that can be written with --out DIR, or free some space"
        what = "the generated package could not be written; what was there is as it was"
        allowed = "a folder that can be written, on a disk with space left"
        raise OutputError(explain(what, where=str(place), value=str(error), allowed=allowed, hint=hint)) from error
    return result


def _changed(package: KernelPackage, place: Path) -> set[str]:
    """Files that differ from what is on disk, and generated files that no longer belong there."""
    changed = {name for name, text in package.files.items() if _read(place / name) != text.encode("utf-8")}
    present = {path.name for path in place.glob("*") if path.suffix in _OURS} if place.is_dir() else set()
    return changed | (present - set(package.files))


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _replace(package: KernelPackage, place: Path) -> None:
    """Fills a folder beside the place, then swaps the two; unchanged files keep their times."""
    if place.exists() and not place.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "there is something else than a folder", str(place))
    place.parent.mkdir(parents=True, exist_ok=True)
    _sweep(place)
    staged = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        staged.chmod(0o755)
        for name, text in package.files.items():
            _stage(place / name, staged / name, text.encode("utf-8"))
        _keep_foreign(place, staged)
        _swap(staged, place)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _swap(staged: Path, place: Path) -> None:
    """Puts a folder in the place of another, which comes back when that fails."""
    old = staged.with_name(f"{staged.name}.old")
    if place.exists():
        place.rename(old)
    try:
        staged.rename(place)
    except BaseException:
        if old.exists():
            old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _keep_foreign(place: Path, staged: Path) -> None:
    """Takes along what is not the generator's, such as notes and folders; not what Python keeps beside modules."""
    for path in place.iterdir() if place.is_dir() else ():
        if path.is_dir() and path.name != BYTECODE:
            shutil.copytree(path, staged / path.name, symlinks=True)
        elif path.is_file() and path.suffix not in _OURS:
            shutil.copy2(path, staged)


def _sweep(place: Path) -> None:
    """Removes what writes of this package left behind when they were killed."""
    for path in place.parent.glob(f".{place.name}.*"):
        if time() - path.stat().st_mtime > LEFTOVER_AGE:
            shutil.rmtree(path, ignore_errors=True)


def _stage(present: Path, staged: Path, content: bytes) -> None:
    if _read(present) == content:
        shutil.copy2(present, staged)
    else:
        staged.write_bytes(content)
