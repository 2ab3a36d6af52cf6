# SPDX-License-Identifier: Apache-2.0
"""``llsa-gen build``: generates the kernels of specs and compiles them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llsa_gen.cli.options import SpecRequest, Wanted, dry_run_option, out_option, packages_folder, spec_options
from llsa_gen.cli.output import Result, Step, format_bytes, progress, reported, table
from llsa_gen.errors import ToolMissingError, explain
from llsa_gen.paths import catalogue_dir, is_checkout
from llsa_gen.targets import Target, get_target

if TYPE_CHECKING:
    from rich.console import Console

    from llsa_gen.codegen import KernelPackage
    from llsa_gen.jit import BuildEvent, BuiltKernel
    from llsa_gen.spec import Spec

INSTRUCTIONS = {"mma": "MMA", "wgmma": "WGMMA", "tma": "TMA", "cp_async": "cp.async"}
"""Counted instructions by their key, with the heading of their column."""

_HELP = """Generates the kernels of specs and compiles them.

Files are written to ./generated in a checkout, else to --out DIR; only what changed is touched. Kernels are compiled
for every target into a cache, so a second run has nothing to do. With --from or --spec and no --target, targets that
cannot be compiled here are left out and listed.

CPU kernels are compiled for the instruction set of this machine, or for those that --isa names, which it need not
execute. Calls take the widest one that their processor executes and that is built.

\b
Examples:
  llsa-gen build --block 16 --k 8
  llsa-gen build --levels 3 --k 16,8,4 --head-dim 128 --dtype fp16 --target cpu,sm90
  llsa-gen build --levels auto --seq-len 65536 --k "max(4, 16 // 2**l)"
  llsa-gen build --spec pixel_dit --target auto
  llsa-gen build --spec pixel_dit --target cpu --isa x86-64-v2,x86-64-v3
  llsa-gen build --from specs.toml --name my_model --out my_package/kernels
  llsa-gen build --from llsa_gen/catalog.toml --no-compile
"""


@dataclass(frozen=True)
class Built:
    """What was done for one spec.

    Attributes:
        name: Name of the spec in its file or the catalogue, or None.
        spec: The spec, its depth known.
        path: Folder of the generated package.
        written: Files that changed.
        unchanged: Whether no file changed.
        kernels: Compiled kernels as JSON-able data.
        skipped: Targets left out, with the reason.
        planned: With ``--dry-run``: targets, with the instruction set where one was chosen, and whether all kernels are
            in the cache already.
    """

    name: str | None
    spec: Spec
    path: Path
    written: tuple[str, ...]
    unchanged: bool
    kernels: tuple[dict[str, Any], ...] = ()
    skipped: dict[str, str] = field(default_factory=dict)
    planned: dict[str, bool] = field(default_factory=dict)

    @property
    def is_idle(self) -> bool:
        """Whether everything was there already."""
        return self.unchanged and all(kernel["cached"] for kernel in self.kernels) and all(self.planned.values())


@click.command("build", help=_HELP, short_help="Generate the kernels of specs and compile them.")
@spec_options()
@out_option("Folder for generated packages, of your own.  [default: ./generated in a checkout]")
@click.option(
    *("--isa", "words"),
    multiple=True,
    metavar="ISA|host|all",
    help="Instruction set of CPU kernels, such as x86-64-v3; repeat it or use commas; all: every one of this "
    "architecture.  [default: host]",
)
@click.option("--compile/--no-compile", "compiles", default=True, help="Compile, or only write files.")
@dry_run_option
@reported
def command(request: SpecRequest, out: Path | None, words: tuple[str, ...], compiles: bool, dry_run: bool) -> Result:
    """Runs the verb."""
    if words and not compiles:
        raise click.UsageError(
            "--isa says what to compile for, and --no-compile compiles nothing: leave one of them out"
        )
    folder = packages_folder(out)
    wanted = request.specs(folder)
    isas = _isas(words, wanted) if words else ()
    with progress() as step:
        done = [_build(one, folder, isas, compiles=compiles, dry_run=dry_run, step=step) for one in wanted]
    data = {
        "dry_run": dry_run,
        "nothing_to_do": all(built.is_idle for built in done),
        "packages": [_data(built) for built in done],
    }
    slugs = tuple(built.spec.slug for built in done)
    return Result(data, partial(_show, done, dry_run=dry_run), brief=slugs)


def _isas(words: tuple[str, ...], wanted: list[Wanted]) -> tuple[str, ...]:
    """The instruction sets that a command line names.

    Raises:
        InputError: No spec has the target that they are for.
        SpecError: There are no kernels for one of them.
    """
    from llsa_gen.jit import architecture

    isas = architecture.isas_named(words)
    for isa in isas:
        architecture.require_known(isa)
    names = dict.fromkeys(name for one in wanted for name in one.spec.targets)
    if not any(get_target(name).has_isa for name in names):
        raise architecture.no_choice(", ".join(names), isas[0])
    return isas


def _build(wanted: Wanted, folder: Path, isas: tuple[str, ...], *, compiles: bool, dry_run: bool, step: Step) -> Built:
    """Writes the package of one spec and compiles it for its targets."""
    from llsa_gen import codegen
    from llsa_gen.lowering import resolve_depth

    spec = resolve_depth(wanted.spec)
    package = codegen.render(spec)
    targets, skipped = _targets(wanted, package, isas) if compiles else ((), {})
    written = codegen.write(package, folder, dry_run=dry_run)
    built = partial(Built, wanted.name, spec, written.path, written.written, written.unchanged, skipped=skipped)
    if dry_run:
        return built(planned={target.label: _is_compiled(spec, target) for target in targets})
    kernels = [_kernel(kernel) for target in targets for kernel in _compile(spec, target, step)]
    return built(kernels=tuple(kernels))


def _targets(
    wanted: Wanted, package: KernelPackage, isas: tuple[str, ...]
) -> tuple[tuple[Target, ...], dict[str, str]]:
    """Targets to compile for, and those left out with the reason because only a file or the catalogue names them.

    Raises:
        InfeasibleError: A target that was asked for has no schedule.
        ToolMissingError: The compiler of such a target is missing, or nothing is left to compile for.
    """
    targets = tuple(one for name in wanted.spec.targets for one in _with_isas(name, isas))
    asked = {one for one in targets if wanted.insists or len(wanted.spec.targets) == 1 or one.arch in isas}
    for target in asked:
        _require(package, target)
    reasons = {one: None if one in asked else _obstacle(package, one) for one in targets}
    skipped = {one.label: reason for one, reason in reasons.items() if reason is not None}
    if len(skipped) == len(reasons):
        what = "no target of this spec can be compiled here"
        hint = "see `llsa-gen doctor`, or add --no-compile"
        allowed = "a target that `llsa-gen doctor` can compile"
        raise ToolMissingError(explain(what, where=package.slug, value=skipped, allowed=allowed, hint=hint))
    return tuple(one for one, reason in reasons.items() if reason is None), skipped


def _with_isas(name: str, isas: tuple[str, ...]) -> tuple[Target, ...]:
    """A target, once for each instruction set where it has any and some were chosen."""
    from llsa_gen.jit import for_isa

    target = get_target(name)
    return tuple(for_isa(target, isa) for isa in isas) if isas and target.has_isa else (target,)


def _require(package: KernelPackage, target: Target) -> None:
    """Finds out before anything is written whether a target can be built."""
    from llsa_gen.jit import toolchain

    package.require_feasible(target.name)
    if _is_compiled(package.spec, target):
        return
    toolchain.require_compiler(target)


def _obstacle(package: KernelPackage, target: Target) -> str | None:
    """Why a target cannot be compiled for, in one line, or None."""
    from llsa_gen.jit import toolchain

    if target.name in package.infeasible:
        return str(package.infeasible[target.name]).splitlines()[0]
    can_compile, reason = toolchain.describe().can_compile(target)
    return None if can_compile else reason


def _compile(spec: Spec, target: Target, step: Step) -> tuple[BuiltKernel, ...]:
    from llsa_gen import jit

    done: set[int] = set()  # kernels are built side by side and end in any order

    def told(event: BuildEvent) -> None:
        if event.status in ("lowering", "compiling"):
            step(f"{event.status} {event.kernel} of {spec.slug} for {event.target}", len(done) + 1, event.total)
        else:
            done.add(event.index)

    return jit.build(spec, target, progress=told)


def _is_compiled(spec: Spec, target: Target) -> bool:
    from llsa_gen import jit

    return jit.built(spec, target)


def _kernel(kernel: BuiltKernel) -> dict[str, Any]:
    used = kernel.resources
    resources = None
    if used is not None:
        resources = {
            "registers": used.registers,
            "spill_bytes": used.spill_bytes,
            "shared_bytes": used.shared_bytes,
            "instructions": {key: used.instructions.get(key, 0) for key in INSTRUCTIONS},
        }
    return {
        "name": kernel.name,
        "target": kernel.target,
        "isa": kernel.arch if resources is None else None,
        "path": str(kernel.path),
        "cached": kernel.cached,
        "seconds": round(kernel.seconds, 3),
        "resources": resources,
    }


def _data(built: Built) -> dict[str, Any]:
    return {
        "name": built.name,
        "slug": built.spec.slug,
        "spec": built.spec.to_fields(),
        "path": str(built.path),
        "written": list(built.written),
        "unchanged": built.unchanged,
        "kernels": list(built.kernels),
        "skipped": built.skipped,
        "planned": built.planned,
        "use": _use(built),
    }


def _use(built: Built) -> list[str]:
    """Lines of Python that get at the kernels."""
    slug, folder = built.spec.slug, built.path.parent
    if folder.resolve() == catalogue_dir().resolve():
        return [*([f"import generated.{slug}"] if is_checkout() else []), f'llsa_gen.load("{slug}")']
    return [f"import {folder.name}.{slug}"] if folder.name.isidentifier() else [f"import {slug}"]


def _show(done: list[Built], console: Console, *, dry_run: bool) -> None:
    """Packages, then kernels, then how to use them."""
    if not dry_run and all(built.is_idle for built in done):
        slugs = ", ".join(built.spec.slug for built in done)
        state = "everything is built" if all(built.kernels for built in done) else "every file is written"
        console.print(f"nothing to do: {slugs}, {state} and up to date", soft_wrap=True)
    else:
        for built in done:
            console.print(_files_line(built, dry_run=dry_run), soft_wrap=True)
    for built in done:
        for target, cached in built.planned.items():
            console.print(f"{built.spec.slug}: {'compiled already' if cached else 'would compile'} for {target}")
        for target, reason in built.skipped.items():
            console.print(f"{built.spec.slug}: not compiled for {target}: {reason}", soft_wrap=True)
    if any(built.kernels for built in done):
        _show_kernels(done, console)
    if not dry_run:
        for built in done:
            console.print(f"use it: {'   or   '.join(_use(built))}", soft_wrap=True)


def _files_line(built: Built, *, dry_run: bool) -> str:
    if built.unchanged:
        return f"{built.spec.slug}: files unchanged in {built.path}"
    return f"{built.spec.slug}: {'would write' if dry_run else 'wrote'} {', '.join(built.written)} in {built.path}"


def _show_kernels(done: list[Built], console: Console) -> None:
    """One row per kernel and target; machine columns only where a compiler reported them."""
    measured = any(kernel["resources"] for built in done for kernel in built.kernels)
    machine = ("registers", "spills", "shared", *INSTRUCTIONS.values()) if measured else ()
    slugs = ("package",) if len(done) > 1 else ()
    isas = ("isa",) if any(kernel["isa"] for built in done for kernel in built.kernels) else ()
    shown = table(*slugs, "target", *isas, "kernel", "state", "seconds", *machine, right=("seconds", *machine))
    for built in done:
        for kernel in built.kernels:
            state = "cached" if kernel["cached"] else "built"
            place = [*([built.spec.slug] if slugs else []), kernel["target"], *([kernel["isa"] or "–"] if isas else [])]
            row = [kernel["name"], state, f"{kernel['seconds']:.2f}"]
            shown.add_row(*place, *row, *(_machine(kernel) if measured else ()))
    console.print(shown)


def _machine(kernel: dict[str, Any]) -> list[str]:
    used = kernel["resources"]
    if used is None:
        return ["–"] * (3 + len(INSTRUCTIONS))
    sizes = [format_bytes(used[key]) for key in ("spill_bytes", "shared_bytes")]
    return [str(used["registers"]), *sizes, *(str(used["instructions"][key]) for key in INSTRUCTIONS)]
