# SPDX-License-Identifier: Apache-2.0
"""``llsa-gen list``: the specs of the catalogue, other generated packages, and for which targets they are built."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llsa_gen.catalog import MANIFEST_NAME, catalogue, catalogue_specs
from llsa_gen.cli.output import Result, reported, table
from llsa_gen.errors import LlsaError
from llsa_gen.paths import catalogue_dir
from llsa_gen.spec import TARGET_NAMES
from llsa_gen.targets import get_target

if TYPE_CHECKING:
    from rich.console import Console

    from llsa_gen.spec import Spec, SpecEntry

_HELP = """Lists the specs of the catalogue and other generated packages, with the targets that they are built for.

Kernels for CPUs are told with their instruction sets, whether this machine executes them or not.

\b
Examples:
  llsa-gen list
  llsa-gen list --quiet
  llsa-gen list --json | jq -r '.specs[].slug'
"""


@click.command("list", help=_HELP, short_help="List the catalogue and what is built.")
@reported
def command() -> Result:
    """Runs the verb."""
    rows = [*map(_named, catalogue().values()), *map(_other, _others(catalogue_dir()))]
    return Result({"specs": rows}, partial(_show, rows), brief=tuple(row["slug"] for row in rows))


def _named(entry: SpecEntry) -> dict[str, Any]:
    return {"name": entry.name, "about": entry.about, **_state(entry.spec)}


def _other(spec: Spec) -> dict[str, Any]:
    return {"name": None, "about": "generated here, not in the catalogue", **_state(spec)}


def _state(spec: Spec) -> dict[str, Any]:
    """What there is of a spec: files, and compiled kernels by target and, for CPUs, by instruction set."""
    is_generated = (catalogue_dir() / spec.slug / MANIFEST_NAME).is_file()
    built = _built(spec)
    isas = {target: list(found) for target, found in built.items() if found}
    return {"slug": spec.slug, "generated": is_generated, "built": list(built), "isas": isas}


def _others(folder: Path) -> list[Spec]:
    """The specs of packages that are not in the catalogue; a broken one is left to `llsa-gen check`."""
    from llsa_gen import manifest
    from llsa_gen.spec import Spec

    known = catalogue_specs()
    found = []
    for path in sorted(folder.glob(f"*/{MANIFEST_NAME}")):
        if path.parent.name not in known:
            with suppress(LlsaError):
                found.append(Spec.from_fields(manifest.read(path.parent).spec))
    return found


def _built(spec: Spec) -> dict[str, tuple[str, ...]]:
    """The targets whose kernels are all in the cache, as they would be built now; of CPUs, what for."""
    from llsa_gen import codegen, jit

    try:
        impossible = codegen.render(spec).infeasible
    except LlsaError:
        return {}  # what cannot be generated now is not built; `llsa-gen build` says why
    found: dict[str, tuple[str, ...]] = {}
    for target in TARGET_NAMES:
        with suppress(LlsaError):  # of one target, which says nothing of the others
            if get_target(target).has_isa:
                found |= {target: isas} if (isas := jit.built_isas(spec)) else {}
            elif target not in impossible and jit.built(spec, target):
                found[target] = ()
    return found


def _show(rows: list[dict[str, Any]], console: Console) -> None:
    shown = table("name", "slug", "built for", "about")
    for row in rows:
        isas = {target: f" ({', '.join(found)})" for target, found in row["isas"].items()}
        named = [f"{target}{isas.get(target, '')}" for target in row["built"]]
        shown.add_row(row["name"] or "–", row["slug"], ", ".join(named) or _unbuilt(row), row["about"])
    console.print(shown)


def _unbuilt(row: dict[str, Any]) -> str:
    return "not compiled" if row["generated"] else "not generated"
