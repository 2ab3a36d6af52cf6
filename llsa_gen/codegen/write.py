# SPDX-License-Identifier: Apache-2.0
"""Writing a generated package: staged beside its place, then renamed; files that do not change are not touched."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from llsa_gen.codegen.package import KernelPackage
from llsa_gen.errors import OutputError, explain


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
        raise OutputError(explain(what, where=str(place), value=str(error), hint=hint)) from error
    return result


def _changed(package: KernelPackage, place: Path) -> set[str]:
    """Files that differ from what is on disk, and generated files that no longer belong there."""
    changed = {name for name, text in package.files.items() if _read(place / name) != text.encode("utf-8")}
    present = {path.name for path in place.glob("*") if path.suffix in (".py", ".json")} if place.is_dir() else set()
    return changed | (present - set(package.files))


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _replace(package: KernelPackage, place: Path) -> None:
    """Fills a folder beside the place, then swaps the two; unchanged files keep their times."""
    place.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    try:
        staged.chmod(0o755)
        for name, text in package.files.items():
            _stage(place / name, staged / name, text.encode("utf-8"))
        old = staged.with_name(f"{staged.name}.old")
        if place.exists():
            place.rename(old)
        try:
            staged.rename(place)
        except OSError:
            if old.exists():
                old.rename(place)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _stage(present: Path, staged: Path, content: bytes) -> None:
    if _read(present) == content:
        shutil.copy2(present, staged)
    else:
        staged.write_bytes(content)
