# SPDX-License-Identifier: Apache-2.0
"""The manifest of a generated package: which spec it is of, and the digest of every file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llsa_gen.digest import digest_bytes
from llsa_gen.errors import LlsaError, StaleError, explain
from llsa_gen.spec import Spec

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Manifest:
    """What a generated package says of itself.

    Attributes:
        slug: Name of the spec.
        spec: Its fields, without targets.
        files: sha256 of every other file by name.
        kernels: The kernels with their arguments and schedules.
    """

    slug: str
    spec: Mapping[str, Any]
    files: Mapping[str, str]
    kernels: Sequence[Mapping[str, Any]]


def manifest_text(spec: Spec, files: Mapping[str, str], kernels: Sequence[Mapping[str, Any]]) -> str:
    """The text of the manifest of generated files; the same bytes for the same content."""
    data = {
        "format": FORMAT,
        "slug": spec.slug,
        "spec": spec.identity(),
        "kernels": list(kernels),
        "files": {name: digest_bytes(text.encode("utf-8")) for name, text in sorted(files.items())},
    }
    return json.dumps(data, indent=2) + "\n"


def read(directory: Path) -> Manifest:
    """The manifest in a folder.

    Raises:
        StaleError: It is missing, is no manifest, or belongs to another spec than it says.
    """
    path = directory / MANIFEST
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        found = Manifest(str(data["slug"]), dict(data["spec"]), dict(data["files"]), list(data["kernels"]))
        if data["format"] != FORMAT:
            raise ValueError(f"format {data['format']!r}, not {FORMAT}")
        if Spec.from_fields(found.spec).slug != found.slug:
            raise ValueError("the spec in it has another name")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, LlsaError) as error:
        hint = f"generate it again: llsa-gen build --spec {directory.name} --out {directory.parent}"
        what, allowed = "the manifest of a generated package is missing or broken", "what `llsa-gen build` wrote"
        value = f"{type(error).__name__}: {error}"
        raise StaleError(explain(what, where=str(path), value=value, allowed=allowed, hint=hint)) from error
    return found
