# SPDX-License-Identifier: Apache-2.0
"""The committed catalogue of named specs, and the way from a slug back to its spec."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from os import PathLike
from pathlib import Path
from types import MappingProxyType

from llsa_gen.errors import SpecError, explain
from llsa_gen.spec import Spec, SpecEntry, load_entries, split_slug

CATALOG_FILE = Path(__file__).with_name("catalog.toml")
MANIFEST_NAME = "manifest.json"
"""File beside generated code whose key ``spec`` holds the fields of its spec."""

_NEAR = 3


@cache
def catalogue() -> Mapping[str, SpecEntry]:
    """The named specs of the catalogue, in the order of the file."""
    return MappingProxyType(load_entries(CATALOG_FILE))


def catalogue_specs() -> dict[str, Spec]:
    """The specs of the catalogue by slug."""
    return {entry.spec.slug: entry.spec for entry in catalogue().values()}


def find_spec(name: str, search: Iterable[str | PathLike[str]] = ()) -> Spec:
    """The spec behind a name of the catalogue or a slug.

    Raises:
        SpecError: Neither the catalogue nor ``search`` knows the name; near ones are listed.
    """
    entry = catalogue().get(name) if isinstance(name, str) else None
    return entry.spec if entry is not None else spec_from_slug(name, search)


def spec_from_slug(slug: str, search: Iterable[str | PathLike[str]] = ()) -> Spec:
    """The spec of a slug; targets are the default where the slug alone tells the spec.

    Args:
        slug: ``spec.slug`` of some spec.
        search: Folders with generated packages in them (``<folder>/<slug>/manifest.json``), tried after the
            catalogue for slugs that end in a digest. A missing or broken manifest is a miss.

    Raises:
        SpecError: The text is no slug, is not in canonical form, or its digest is not known here.
    """
    fields, digest = _split(slug)
    if digest is None:
        return _from_readable(slug, fields)
    known = catalogue_specs()
    if slug in known:
        return known[slug]
    folders = [Path(folder) for folder in search]
    for folder in folders:
        spec = _from_manifest(folder / slug / MANIFEST_NAME)
        if spec is not None and spec.slug == slug:
            return spec
    what = "no spec with this digest is known here"
    hint = f"{_near(slug, folders)}; or give the fields: `llsa-gen build --from FILE.toml`"
    allowed = "a digest of the catalogue or of a package in the folders that are searched"
    raise SpecError(explain(what, where="slug", value=slug, allowed=allowed, hint=hint))


def _split(slug: str) -> tuple[dict[str, object], str | None]:
    try:
        return split_slug(slug)
    except SpecError as error:
        raise SpecError(f"{error}\n  next:    {_near(slug, [])}") from None


def _from_readable(slug: str, fields: Mapping[str, object]) -> Spec:
    try:
        spec = Spec.from_fields(fields)
    except SpecError as error:
        raise SpecError(f"slug {slug!r}:\n{error}") from error
    if spec.slug != slug:
        what, hint = "the name is not in canonical form", f"write {spec.slug!r}"
        raise SpecError(explain(what, where="slug", value=slug, allowed=spec.slug, hint=hint))
    return spec


def _from_manifest(path: Path) -> Spec | None:
    """The spec of a manifest, or None where the manifest is missing or broken."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        return Spec.from_fields(manifest["spec"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _near(slug: object, folders: list[Path]) -> str:
    """Names close to a slug, out of the catalogue and the searched folders."""
    from difflib import get_close_matches

    names = {*catalogue(), *catalogue_specs()}
    for folder in folders:
        names.update(path.parent.name for path in folder.glob(f"*/{MANIFEST_NAME}"))
    close = get_close_matches(str(slug)[:100], sorted(names), n=_NEAR, cutoff=0.6)
    return f"near names: {', '.join(close)}" if close else "see `llsa-gen list` for the names of the catalogue"
