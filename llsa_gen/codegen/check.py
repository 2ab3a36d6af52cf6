# SPDX-License-Identifier: Apache-2.0
"""Checking committed code: every byte is what would be generated now, and nothing else lies there."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llsa_gen import manifest
from llsa_gen.codegen.heading import command
from llsa_gen.codegen.package import KernelPackage
from llsa_gen.codegen.render import render
from llsa_gen.codegen.write import BYTECODE
from llsa_gen.errors import LlsaError
from llsa_gen.spec import Spec

Problem = Literal["stale", "missing", "orphan", "broken"]


@dataclass(frozen=True)
class Finding:
    """One difference between what is there and what would be generated.

    Attributes:
        path: The file or folder.
        problem: ``stale`` (other bytes), ``missing``, ``orphan`` (belongs to no spec) or ``broken`` (manifest).
        diff: Unified diff from what is there to what would be generated.
        repair: The command that mends it.
    """

    path: Path
    problem: Problem
    diff: str
    repair: str


def check(directory: Path, specs: Mapping[str, Spec]) -> tuple[Finding, ...]:
    """Compares a folder of generated packages with what the specs give now.

    Args:
        directory: The folder, one package per slug in it.
        specs: The specs that must be there, by any name; packages of other specs are checked by their manifests.
    """
    findings: list[Finding] = []
    expected = {spec.slug: spec for spec in specs.values()}
    for slug in sorted(expected):
        findings += _check_package(directory / slug, render(expected[slug]))
    for path in sorted(directory.iterdir()) if directory.is_dir() else []:
        if path.name not in expected and not path.name.startswith((".", "__")):
            findings += _check_other(path)
    return tuple(findings)


def _check_package(place: Path, package: KernelPackage) -> list[Finding]:
    repair = command(package.spec)
    findings = []
    for name, text in package.files.items():
        path = place / name
        if not path.is_file():
            findings.append(Finding(path, "missing", "", repair))
        elif path.read_bytes() != text.encode("utf-8"):
            present = path.read_text(encoding="utf-8", errors="replace")
            findings.append(Finding(path, "stale", _diff(present, text, name), repair))
    inside = sorted(place.iterdir()) if place.is_dir() else []
    return findings + [_orphan(path) for path in inside if path.name not in (*package.files, BYTECODE)]


def _check_other(path: Path) -> list[Finding]:
    """A package outside the expected specs must be whole by its own manifest; anything else is an orphan."""
    if not path.is_dir():
        return [_orphan(path)]
    try:
        spec = Spec.from_fields(manifest.read(path).spec)
        package = render(spec)
    except LlsaError as error:
        return [Finding(path, "broken", str(error), f"rm -r {shlex.quote(str(path))}")]
    return _check_package(path, package)


def _orphan(path: Path) -> Finding:
    """A package is flat: a folder in it belongs to no spec, as a file that no spec generates."""
    remove = "rm -r" if path.is_dir() else "rm"
    return Finding(path, "orphan", "", f"{remove} {shlex.quote(str(path))}")


def _diff(present: str, expected: str, name: str) -> str:
    lines = difflib.unified_diff(
        present.splitlines(keepends=True), expected.splitlines(keepends=True), f"{name} (there)", f"{name} (generated)"
    )
    return "".join(lines)
