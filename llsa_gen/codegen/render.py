# SPDX-License-Identifier: Apache-2.0
"""Rendering: a spec in, the text of every generated file out. Pure: no device, no clock, no environment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

from llsa_gen.codegen.heading import FOLDER, heading
from llsa_gen.codegen.package import KernelInstance, KernelPackage, file_of
from llsa_gen.codegen.views import KernelView, kernel_views
from llsa_gen.errors import InfeasibleError, TemplateError, explain
from llsa_gen.ir.types import KernelKey, Plan
from llsa_gen.lowering import plans_of, variants_of
from llsa_gen.manifest import MANIFEST, manifest_text
from llsa_gen.paths import compiled_templates_dir, templates_dir
from llsa_gen.schedule import Schedule, solve
from llsa_gen.spec import Spec
from llsa_gen.targets import get_target, list_targets


@lru_cache(maxsize=64)
def render(spec: Spec) -> KernelPackage:
    """Generates the package of a spec.

    Raises:
        TemplateError: A template is missing or wrong.
    """
    plans = plans_of(spec)
    variants = tuple(variant for plan in plans for variant in variants_of(plan))
    views = kernel_views(variants)
    kernels, infeasible = _kernels(variants, {view.name: view for view in views})
    files = {file_of(view.name, "tilelang"): _kernel_text(view, "tilelang") for view in views}
    files |= {file_of(view.name, "tvm"): _lanes_text(plans[0].spec, view) for view in views}
    resolved = plans[0].spec
    files["__init__.py"] = _text(f"{FOLDER}/package.py.jinja", heading=heading(resolved, "package"), spec=resolved)
    files[MANIFEST] = manifest_text(resolved, files, [_record(kernel) for kernel in kernels])
    return KernelPackage(resolved, plans, dict(sorted(files.items())), kernels, infeasible)


def _kernels(
    plans: Sequence[Plan], views: dict[str, KernelView]
) -> tuple[tuple[KernelInstance, ...], dict[str, InfeasibleError]]:
    """The distinct kernels of some plans, and the targets that one of them does not fit."""
    infeasible: dict[str, InfeasibleError] = {}
    factories = {stage.kernel(plan): stage.factory for plan in reversed(plans) for stage in reversed(plan.stages)}
    kernels = []
    for key in dict.fromkeys(key for plan in plans for key in plan.kernels()):
        schedules: list[tuple[str, Schedule]] = []
        for target in list_targets():
            try:
                schedules.append((target.name, solve(key, plans[0].spec, get_target(target.name))))
            except InfeasibleError as error:
                infeasible.setdefault(target.name, error)
        factory = factories[key]
        kernels.append(KernelInstance(_name(key, factory), factory, key, views[factory].parameters, tuple(schedules)))
    return tuple(kernels), infeasible


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
