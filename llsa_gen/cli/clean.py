# SPDX-License-Identifier: Apache-2.0
"""``llsa-gen clean``: removes cached builds and ad-hoc generated packages."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llsa_gen.catalog import MANIFEST_NAME, catalogue, catalogue_specs
from llsa_gen.cli.options import dry_run_option, out_option, packages_folder
from llsa_gen.cli.output import Result, format_bytes, reported
from llsa_gen.errors import OutputError, SpecError, did_you_mean, explain
from llsa_gen.paths import cache_dir

if TYPE_CHECKING:
    from rich.console import Console

_HELP = """Removes compiled kernels from the cache; they are built again when they are needed.

Without --spec, compiled templates go too, and the sources that failed builds left for looking at.

With --generated, generated packages go too that are not in the catalogue. The catalogue itself is never touched.

Tuning records stay, because it takes minutes of timing to make them again; with --tuning all of them go too.

\b
Examples:
  llsa-gen clean --dry-run
  llsa-gen clean --spec llsa_l2_b16_k8_d64_bf16
  llsa-gen clean --generated
  llsa-gen clean --tuning
"""


@click.command("clean", help=_HELP, short_help="Remove cached builds.")
@click.option("--spec", "name", metavar="NAME", help="Only one spec: a name of the catalogue, or a slug.")
@click.option("--generated", is_flag=True, help="Generated packages that are not in the catalogue too.")
@click.option("--tuning", is_flag=True, help="Tuning records too, of all specs: default schedules again.")
@out_option("With --generated: the folder of the packages.  [default: ./generated in a checkout]")
@dry_run_option
@reported
def command(name: str | None, generated: bool, tuning: bool, out: Path | None, dry_run: bool) -> Result:
    """Runs the verb."""
    if tuning and name is not None:
        raise click.UsageError("--tuning removes the records of all specs, some of which share them: leave --spec out")
    if out is not None and not generated:
        raise click.UsageError("--out is the folder of generated packages: it needs --generated")
    slug = _slug(name)
    packages = _packages(packages_folder(out), slug) if generated else {}
    cached, failed, (folder, records) = _cached(slug), _failed(slug), _records(insists=tuning)
    if slug is not None and not cached and not packages:
        _check_known(slug)
    would_free = sum(cached.values()) + sum(failed.values()) + _template_bytes(slug)
    data = {
        "dry_run": dry_run,
        "cache_entries": len(cached),
        "failed_builds": len(failed),
        "cache_bytes": would_free if dry_run else _clear_cache(slug),
        "packages": [str(path) for path in packages],
        "package_bytes": sum(packages.values()),
        "tuning_folder": None if folder is None else str(folder),
        "tuning_records": len(records) if tuning else 0,
        "tuning_bytes": sum(records.values()) if tuning else 0,
        "tuning_left": 0 if tuning else len(records),
    }
    if not dry_run:
        for path in packages:
            shutil.rmtree(path)
        for path in records if tuning else ():
            path.unlink(missing_ok=True)
    return Result(data, partial(_show, data), brief=tuple(map(str, packages)))


def _slug(name: str | None) -> str | None:
    """The slug behind a name of the catalogue; anything else is taken for a slug."""
    entry = catalogue().get(name) if name is not None else None
    return name if entry is None else entry.spec.slug


def _cached(slug: str | None) -> dict[Path, int]:
    """Sizes of the cache entries of a spec, or of all."""
    from llsa_gen.jit import cache

    return {Path(entry.path): entry.bytes for entry in cache.entries() if slug in (None, entry.slug)}


def _failed(slug: str | None) -> dict[Path, int]:
    """Sizes of what failed builds left for looking at; they go when everything goes."""
    from llsa_gen.jit import cache

    return cache.failures() if slug is None else {}


def _template_bytes(slug: str | None) -> int:
    """Bytes of compiled templates; they go when everything goes."""
    from llsa_gen.jit import cache

    return cache.templates_size() if slug is None else 0


def _clear_cache(slug: str | None) -> int:
    """Removes cache entries and returns the bytes that became free."""
    from llsa_gen.jit import cache

    freed = cache.clear(slug)
    left = _cached(slug)
    if left:
        what = f"{len(left)} cached builds could not be removed"
        value, allowed = ", ".join(sorted(path.name for path in left)), "a folder that can be written"
        hint = "look at the permissions of the folder"
        raise OutputError(explain(what, where=str(cache_dir()), value=value, allowed=allowed, hint=hint))
    return freed


def _records(*, insists: bool) -> tuple[Path | None, dict[Path, int]]:
    """The folder of the tuning records and their sizes; none where they are switched off.

    Raises:
        InputError: They are switched off although they were asked for.
    """
    from llsa_gen.jit import records

    folder = records.require_dir() if insists else records.records_dir()
    return folder, {} if folder is None else records.files(folder)


def _packages(folder: Path, slug: str | None) -> dict[Path, int]:
    """Sizes of the ad-hoc packages in a folder. What does not look like one of ours is left alone."""
    kept = catalogue_specs()
    found = sorted(path.parent for path in folder.glob(f"*/{MANIFEST_NAME}"))
    chosen = [path for path in found if path.name not in kept and slug in (None, path.name) and _is_ours(path)]
    return {path: _size(path) for path in chosen}


def _is_ours(package: Path) -> bool:
    """Whether the manifest of a folder names it; a link is never followed."""
    if package.is_symlink():
        return False
    try:
        manifest = json.loads((package / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and manifest.get("slug") == package.name


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_symlink() or path.is_file())


def _check_known(slug: str) -> None:
    """A name that cannot be one is a mistake; a spec that was never built is just clean."""
    from llsa_gen.spec import split_slug

    try:
        split_slug(slug)
    except SpecError:
        names = [*catalogue(), *catalogue_specs()]
        what = "there is no spec of this name"
        hint = did_you_mean(slug, names) or "see `llsa-gen list`"
        allowed = f"{', '.join(catalogue())}, or a slug"
        raise SpecError(explain(what, where="--spec", value=slug, allowed=allowed, hint=hint)) from None


def _show(data: dict[str, Any], console: Console) -> None:
    verb = "would remove" if data["dry_run"] else "removed"
    for path in data["packages"]:
        console.print(f"{verb} {path}", soft_wrap=True)
    failed = f" and {data['failed_builds']} failed ones" if data["failed_builds"] else ""
    parts = [f"{data['cache_entries']} cached builds{failed} ({data['cache_bytes']:,} bytes)"]
    if data["packages"]:
        parts.append(f"{len(data['packages'])} packages ({data['package_bytes']:,} bytes)")
    if data["tuning_records"]:
        parts.append(f"{data['tuning_records']} tuning records ({data['tuning_bytes']:,} bytes)")
    total = data["cache_bytes"] + data["package_bytes"] + data["tuning_bytes"]
    console.print(f"{verb} {' and '.join(parts)}: {total:,} bytes, {format_bytes(total)}")
    if data["tuning_left"]:
        where = f"{data['tuning_left']} tuning records stay in {data['tuning_folder']}"
        console.print(f"{where}: --tuning removes them too", soft_wrap=True)
