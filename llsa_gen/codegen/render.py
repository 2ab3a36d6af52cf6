# SPDX-License-Identifier: Apache-2.0
"""Rendering: a spec in, the text of every generated file out. Pure: no device, no clock, no environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from graphlib import TopologicalSorter
from itertools import pairwise
from typing import Any

from llsa_gen.codegen.heading import FOLDER, heading
from llsa_gen.codegen.package import PREFIXES, KernelInstance, KernelPackage, file_of
from llsa_gen.codegen.views import KernelView, kernel_views
from llsa_gen.errors import InfeasibleError, TemplateError, explain
from llsa_gen.ir.types import KernelKey, Plan
from llsa_gen.lowering import plans_of, resolve_depth, variants_of
from llsa_gen.manifest import MANIFEST, manifest_text
from llsa_gen.paths import compiled_templates_dir, templates_dir
from llsa_gen.schedule import Schedule, joins, solve
from llsa_gen.spec import Spec
from llsa_gen.targets import Language, get_target, list_targets


@lru_cache(maxsize=64)
def render(spec: Spec) -> KernelPackage:
    """Generates the package of a spec.

    Raises:
        TemplateError: A template is missing or wrong.
    """
    resolved = resolve_depth(spec)
    plans = {language: plans_of(resolved, joined=joins(resolved, language)) for language in PREFIXES}
    variants = {language: _variants(found) for language, found in plans.items()}
    kernels, infeasible = _kernels(resolved, variants)
    files = {
        file_of(view.name, "tilelang"): _kernel_text(view, "tilelang") for view in kernel_views(variants["tilelang"])
    }
    files |= {file_of(view.name, "tvm"): _lanes_text(resolved, view) for view in kernel_views(variants["tvm"])}
    files["__init__.py"] = _text(f"{FOLDER}/package.py.jinja", heading=heading(resolved, "package"), spec=resolved)
    files[MANIFEST] = manifest_text(resolved, files, [_record(kernel) for kernel in kernels])
    return KernelPackage(resolved, plans, dict(sorted(files.items())), kernels, infeasible)


def _variants(plans: Sequence[Plan]) -> tuple[Plan, ...]:
    """Every form of some plans: together they have the kernels of every length."""
    return tuple(variant for plan in plans for variant in variants_of(plan))


def _kernels(
    spec: Spec, variants: Mapping[Language, Sequence[Plan]]
) -> tuple[tuple[KernelInstance, ...], dict[str, InfeasibleError]]:
    """The distinct kernels of some plans, and the targets that one of them does not fit."""
    infeasible: dict[str, InfeasibleError] = {}
    every = tuple(plan for plans in variants.values() for plan in plans)
    views = {view.name: view for view in kernel_views(every)}
    factories = {stage.kernel(plan): stage.factory for plan in reversed(every) for stage in reversed(plan.stages)}
    kernels = []
    for key, languages in _languages(variants).items():
        schedules, refused = _schedules(key, spec, languages)
        infeasible = refused | infeasible
        factory = factories[key]
        parameters = views[factory].parameters
        kernels.append(KernelInstance(_name(key, factory), factory, key, parameters, languages, schedules))
    return tuple(kernels), infeasible


def _schedules(
    key: KernelKey, spec: Spec, languages: Sequence[Language]
) -> tuple[tuple[tuple[str, Schedule], ...], dict[str, InfeasibleError]]:
    """The schedule of a kernel for every target of some languages, and the targets that it does not fit."""
    found: list[tuple[str, Schedule]] = []
    refused: dict[str, InfeasibleError] = {}
    for target in (target for target in list_targets() if target.language in languages):
        try:
            found.append((target.name, solve(key, spec, target)))
        except InfeasibleError as error:
            refused[target.name] = error
    return tuple(found), refused


def _languages(variants: Mapping[Language, Sequence[Plan]]) -> dict[KernelKey, tuple[Language, ...]]:
    """The kernels of some plans, each with the languages whose plans have it; in an order that is that of each plan."""
    found: dict[KernelKey, tuple[Language, ...]] = {}
    order: TopologicalSorter[KernelKey] = TopologicalSorter()
    for language, plans in variants.items():
        keys = tuple(dict.fromkeys(key for plan in plans for key in plan.kernels()))
        for key in keys:
            order.add(key)
            found[key] = (*found.get(key, ()), language)
        for before, after in pairwise(keys):
            order.add(after, before)
    return {key: found[key] for key in order.static_order()}


def _name(key: KernelKey, factory: str) -> str:
    """A readable name, unique in a package: the factory with the structural arguments that tell instances apart."""
    told = [f"{name}{value}" for name, value in key.args if name != "part"]
    return "_".join([factory, *told])


def _record(kernel: KernelInstance) -> dict[str, Any]:
    kind = kernel.key.kind
    return {
        "name": kernel.name,
        "files": sorted({kernel.file(name) for name, _ in kernel.schedules}),
        "arguments": {name: value for name, value in kernel.key.args if name != "part"},
        "schedules": {name: found.arguments(kind, get_target(name).language) for name, found in kernel.schedules},
    }


def _kernel_text(view: KernelView, folder: str) -> str:
    return _text(f"{folder}/{view.template}.py.jinja", stage=view)


def _lanes_text(spec: Spec, view: KernelView) -> str:
    """The text for CPUs: the same values in another template."""
    return _kernel_text(replace(view, heading=heading(spec, view.template, "tvm")), "tvm")


def _text(name: str, **values: Any) -> str:
    import jinja2

    try:
        return str(_environment().get_template(name).render(**values))
    except jinja2.TemplateError as error:
        hint = "this is a fault of the template; restore it from the repository"
        what = "a template cannot be rendered"
        raise TemplateError(explain(what, where=name, value=str(error), hint=hint)) from error


@lru_cache(maxsize=1)
def _environment() -> Any:
    from llsa_gen.codegen.compiled import environment

    return environment(templates_dir(), compiled_templates_dir())
