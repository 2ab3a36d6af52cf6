# SPDX-License-Identifier: Apache-2.0
"""``llsa-gen doctor``: what is installed, what can be compiled and run here, and what to do about the rest."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llsa_gen import __version__
from llsa_gen.cli.failure import EXIT_TOOL
from llsa_gen.cli.output import Result, progress, reported, table
from llsa_gen.paths import CACHE_VARIABLE, cache_dir, catalogue_dir, is_checkout, templates_dir
from llsa_gen.spec import TARGET_NAMES

if TYPE_CHECKING:
    from rich.console import Console

    from llsa_gen.jit.toolchain import Tool, Toolchain

PACKAGES = ("python", "torch", "tilelang", "tvm", "tvm_ffi")
EXTRAS = {"matplotlib": "demo", "PIL": "demo", "pandas": "bench", "hypothesis": "test", "pytest": "test"}
"""Optional libraries by import name, with the extra that brings them."""

_HELP = """Says what is installed, which targets can be compiled and run here, and what to do about the rest.

Ends with 4 where not a single target can be compiled.

\b
Examples:
  llsa-gen doctor
  llsa-gen doctor --json | jq '.targets[] | select(.can_run)'
"""


@click.command("doctor", help=_HELP, short_help="Say what is installed and what it can do.")
@reported
def command() -> Result:
    """Runs the verb."""
    from llsa_gen.jit import toolchain

    with progress() as step:
        step("asking compilers and devices")
        chain = toolchain.describe()
    targets = [_target(chain, name) for name in TARGET_NAMES]
    data = {
        "version": __version__,
        "checkout": is_checkout(),
        "packages": {name: getattr(chain, name) for name in PACKAGES},
        "compilers": {"c++": _tool(chain.cxx), "nvcc": _tool(chain.nvcc)},
        "gpus": list(chain.gpus),
        "extras": {name: find_spec(name) is not None for name in EXTRAS},
        "targets": targets,
        "folders": [_folder(*each) for each in _folders()],
    }
    usable = tuple(row["target"] for row in targets if row["can_compile"])
    data["advice"] = _advice(data)
    return Result(data, partial(_show, data), brief=usable, exit_code=0 if usable else EXIT_TOOL)


def _target(chain: Toolchain, name: str) -> dict[str, Any]:
    can_compile, why_compile = chain.can_compile(name)
    can_run, why_run = chain.can_run(name)
    return {
        "target": name,
        "can_compile": can_compile,
        "compile_reason": why_compile,
        "can_run": can_run,
        "run_reason": why_run,
    }


def _tool(found: Tool | None) -> dict[str, str] | None:
    """Path, version and source of a compiler."""
    return None if found is None else asdict(found)


def _folders() -> tuple[tuple[str, Path, bool], ...]:
    """Folders in use; the last value says whether they are written to."""
    return (
        ("cache", cache_dir(), True),
        ("templates", templates_dir(), False),
        ("generated", catalogue_dir(), is_checkout()),
    )


def _folder(name: str, path: Path, is_written: bool) -> dict[str, Any]:
    """Whether a folder is there, or can be made, and can be written to where that is needed."""
    missing = "" if path.is_dir() else "there is no such folder"
    fault = _write_fault(path) if is_written else missing
    return {"name": name, "path": str(path), "exists": path.is_dir(), "ok": not fault, "fault": fault}


def _write_fault(path: Path) -> str:
    """Why nothing can be written to a folder, or empty; tried, because permissions alone do not tell."""
    try:
        nearest = next(parent for parent in (path, *path.parents) if parent.exists())
        Path(tempfile.mkdtemp(prefix=".llsa-gen-doctor-", dir=nearest)).rmdir()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _advice(data: dict[str, Any]) -> list[str]:
    """What to do next, the most important first."""
    found = []
    missing = [name for name, version in data["packages"].items() if version is None]
    if missing:
        found.append(f"{', '.join(missing)} missing: pip install llsa-gen")
    impossible = [row for row in data["targets"] if not row["can_compile"]]
    found += [f"{row['target']} cannot be compiled: {row['compile_reason']}" for row in impossible]
    for row in data["folders"]:
        if not row["ok"]:
            hint = f"; name another: {CACHE_VARIABLE}=DIR" if row["name"] == "cache" else ""
            found.append(f"folder {row['name']} cannot be used: {row['path']}: {row['fault']}{hint}")
    extras = sorted({EXTRAS[name] for name, is_there in data["extras"].items() if not is_there})
    found += [f"for `{extra}` work: pip install 'llsa-gen[{extra}]'" for extra in extras]
    return found


def _show(data: dict[str, Any], console: Console) -> None:
    place = "a checkout" if data["checkout"] else "an installed package"
    console.print(f"llsa-gen {data['version']}, {place}")
    tools = table("found", "version", "where")
    for name, version in data["packages"].items():
        tools.add_row(name, version or "missing", "")
    for name, tool in data["compilers"].items():
        where = "" if tool is None else f"{tool['path']} ({tool['source']})"
        tools.add_row(name, _state(tool), where)
    for gpu in data["gpus"] or ["none"]:
        tools.add_row("GPU", gpu, "")
    for row in data["folders"]:
        tools.add_row(row["name"], "ok" if row["ok"] else "cannot be used", row["path"])
    console.print(tools)
    _show_targets(data["targets"], console)
    for name, tool in data["compilers"].items():
        if tool is not None and tool["fault"]:
            console.print(f"{name}, {tool['path']}, says:\n{tool['fault']}", soft_wrap=True)
    for line in data["advice"]:
        console.print(f"next: {line}", soft_wrap=True)


def _state(tool: dict[str, str] | None) -> str:
    """The version of a compiler, or why it has none."""
    if tool is None:
        return "missing"
    return f"broken: {tool['fault'].splitlines()[0]}" if tool["fault"] else tool["version"]


def _show_targets(rows: list[dict[str, Any]], console: Console) -> None:
    shown = table("target", "compiles here", "runs here")
    for row in rows:
        answers = ((row["can_compile"], row["compile_reason"]), (row["can_run"], row["run_reason"]))
        shown.add_row(row["target"], *(_yes_or(reason) if not can else _yes(reason) for can, reason in answers))
    console.print(shown)


def _yes(reason: str) -> str:
    return f"yes ({reason})" if reason else "yes"


def _yes_or(reason: str) -> str:
    return f"no: {reason}" if reason else "no"
