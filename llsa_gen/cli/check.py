# SPDX-License-Identifier: Apache-2.0
"""``llsa-gen check``: whether generated code is what would be generated now."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llsa_gen.catalog import MANIFEST_NAME, catalogue, catalogue_specs, find_spec
from llsa_gen.cli.failure import EXIT_DIFFERENT
from llsa_gen.cli.options import out_option
from llsa_gen.cli.output import Result, Step, progress, reported
from llsa_gen.errors import InputError, LlsaError, explain
from llsa_gen.paths import catalogue_dir, is_checkout

if TYPE_CHECKING:
    from rich.console import Console

    from llsa_gen.spec import Spec

_HELP = """Renders specs again and compares every byte with the generated files.

Without names: the whole catalogue and every other package in the folder. Two processes with different hash seeds render
too, and must agree. Ends with 1 where something differs; the difference and the command that repairs it are printed.

\b
Examples:
  llsa-gen check
  llsa-gen check pixel_dit llsa_l1_b64_k16_d64_fp16
  llsa-gen check --out my_package/kernels
"""


_FOLDER = "a folder that `llsa-gen build` wrote packages into"


@click.command("check", help=_HELP, short_help="Compare generated files with what would be generated now.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@out_option("Folder of the generated packages.  [default: the catalogue]")
@reported
def command(names: tuple[str, ...], out: Path | None) -> Result:
    """Runs the verb."""
    folder = catalogue_dir() if out is None else out
    specs = _chosen(names, folder) if names else _expected(folder)
    if not specs:
        _require_packages(folder)
    with progress() as step:
        findings = _compare(folder, specs, named=bool(names), step=step)
        findings += _unstable(specs, step)
    data = {"path": str(folder), "checked": list(specs), "findings": findings, "ok": not findings}
    exit_code = EXIT_DIFFERENT if findings else 0
    return Result(data, partial(_show, data), brief=_paths(findings), exit_code=exit_code)


def _require_packages(folder: Path) -> None:
    """Refuses to find nothing wrong with nothing."""
    what = None if folder.is_dir() else "there is no such folder of generated packages"
    if what is None and not any(folder.iterdir()):
        what = "the folder holds no generated packages"
    if what is not None:
        hint = f"fill it: llsa-gen build --out {folder}"
        raise InputError(explain(what, where="--out", value=str(folder), allowed=_FOLDER, hint=hint))


def _chosen(names: tuple[str, ...], folder: Path) -> dict[str, Spec]:
    """The specs of names on the command line, by slug."""
    found = [
        catalogue()[name].spec if name in catalogue() else find_spec(name, [folder, catalogue_dir()]) for name in names
    ]
    return {spec.slug: spec for spec in found}


def _expected(folder: Path) -> dict[str, Spec]:
    """The specs that a folder should hold: the catalogue where it lives, and what other packages say they are."""
    from llsa_gen import manifest
    from llsa_gen.spec import Spec

    specs = catalogue_specs() if folder.resolve() == catalogue_dir().resolve() else {}
    for path in sorted(folder.glob(f"*/{MANIFEST_NAME}")):
        try:
            spec = Spec.from_fields(manifest.read(path.parent).spec)
        except LlsaError:
            continue  # a package that is broken: the comparison says so
        specs.setdefault(spec.slug, spec)
    return specs


def _compare(folder: Path, specs: dict[str, Spec], *, named: bool, step: Step) -> list[dict[str, Any]]:
    """The findings of the code generator; with names, only those about their packages."""
    from llsa_gen import codegen

    step(f"comparing {len(specs)} packages in {folder}")
    return [
        {
            "path": str(finding.path),
            "problem": finding.problem,
            "diff": finding.diff,
            "repair": _repair(finding.repair, folder),
        }
        for finding in codegen.check(folder, specs)
        if not named or finding.path.relative_to(folder).parts[0] in specs
    ]


def _repair(command: str, folder: Path) -> str:
    """The command that mends a finding, for the folder that was checked."""
    is_default = is_checkout() and folder.resolve() == catalogue_dir().resolve()
    return command if is_default or not command.startswith("llsa-gen build") else f"{command} --out {folder}"


def _unstable(specs: dict[str, Spec], step: Step) -> list[dict[str, Any]]:
    """Findings for specs whose text depends on the process that renders it."""
    from llsa_gen.cli.rerender import HASH_SEEDS, digests_elsewhere

    step("rendering in two more processes with different hash seeds")
    runs = [digests_elsewhere(specs, seed) for seed in HASH_SEEDS]
    return [
        {
            "path": slug,
            "problem": "unstable",
            "diff": "".join(
                f"PYTHONHASHSEED={seed}: {run[slug]}\n" for seed, run in zip(HASH_SEEDS, runs, strict=True)
            ),
            "repair": "the generator depends on the order of a set: please report it",
        }
        for slug in specs
        if len({run[slug] for run in runs}) > 1
    ]


def _paths(findings: list[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(finding["path"] for finding in findings)


def _show(data: dict[str, Any], console: Console) -> None:
    for finding in data["findings"]:
        console.print(f"{finding['problem']}: {finding['path']}", style="bold", soft_wrap=True)
        if finding["diff"]:
            console.print(finding["diff"].rstrip("\n"), soft_wrap=True)
        console.print(f"  repair: {finding['repair']}", soft_wrap=True)
    count = len(data["checked"])
    if data["ok"]:
        console.print(f"ok: {count} packages in {data['path']} are what would be generated now", soft_wrap=True)
    else:
        console.print(f"{len(data['findings'])} differences in {count} packages of {data['path']}", soft_wrap=True)
