# SPDX-License-Identifier: Apache-2.0
"""The generated package of a spec, as values: files, kernels and their schedules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from llsa_gen.codegen.views import Parameter
from llsa_gen.errors import InfeasibleError, InternalError, UnsupportedError, explain
from llsa_gen.ir.types import Direction, KernelKey, Plan, Stage
from llsa_gen.lowering import lower
from llsa_gen.schedule import Schedule
from llsa_gen.spec import Spec
from llsa_gen.targets import Language, Target, get_target

PREFIXES: Mapping[Language, str] = {"tilelang": "", "tvm": "cpu_"}
"""What the names of generated files begin with."""


def file_of(factory: str, language: Language) -> str:
    """The generated file that holds a factory in a language."""
    return f"{PREFIXES[language]}{factory}.py"


@dataclass(frozen=True)
class KernelInstance:
    """One kernel that a spec needs: a factory of generated files with its arguments.

    Attributes:
        name: Unique in the spec.
        factory: The function; `file` names the file that holds it for a target.
        key: The structural arguments.
        parameters: What a call takes, in order.
        languages: What it is written in.
        schedules: The schedule for each target that one fits, by target name.
    """

    name: str
    factory: str
    key: KernelKey
    parameters: tuple[Parameter, ...]
    languages: tuple[Language, ...]
    schedules: tuple[tuple[str, Schedule], ...]

    @property
    def structure(self) -> dict[str, Any]:
        """The keyword arguments of the factory that no schedule changes."""
        return {key: value for key, value in self.key.args if key != "part"}

    def with_schedule(self, target: str, schedule: Schedule) -> KernelInstance:
        """The same with another schedule for one of its targets."""
        others = (pair for pair in self.schedules if pair[0] != target)
        return replace(self, schedules=(*others, (target, schedule)))

    def arguments(self, target: str) -> dict[str, Any]:
        """The keyword arguments of the factory for a target.

        Raises:
            InternalError: No schedule fits; `KernelPackage.require_feasible` says so first.
        """
        for name, schedule in self.schedules:
            if name == target:
                return self.structure | schedule.arguments(self.key.kind, get_target(target).language)
        raise InternalError(explain("a kernel has no schedule for this target", where=self.name, value=target))

    def file(self, target: str) -> str:
        """The generated file that holds the kernel for a target."""
        return file_of(self.factory, get_target(target).language)


@dataclass(frozen=True, eq=False)
class KernelPackage:
    """What `llsa-gen build` writes for one spec.

    Attributes:
        spec: Its spec, with a fixed depth.
        plans: The lowered plans for kernels in a language: attention, then its gradients where they are built.
        files: Text of every file by name, the manifest included.
        kernels: The distinct kernels in the order of their first launch.
        infeasible: Targets that some kernel has no schedule for, with the error.
    """

    spec: Spec
    plans: Mapping[Language, tuple[Plan, ...]]
    files: Mapping[str, str]
    kernels: tuple[KernelInstance, ...]
    infeasible: Mapping[str, InfeasibleError]

    @property
    def slug(self) -> str:
        """The name of the spec and of the folder."""
        return self.spec.slug

    def require_feasible(self, target: str) -> None:
        """Refuses a target that no schedule fits.

        Raises:
            InfeasibleError: Names the kernel and the limit that binds.
        """
        if target in self.infeasible:
            raise self.infeasible[target]

    def body(self, name: str) -> str:
        """The text of a file without its heading, which names the spec: specs share kernels whose bodies agree."""
        text = self.files[name]
        return text[text.index('\n"""') :]

    def plans_for(self, target: str | Target) -> tuple[Plan, ...]:
        """The lowered plans for the kernels of a target."""
        return self.plans[get_target(target).language]

    def kernels_for(self, target: str | Target) -> tuple[KernelInstance, ...]:
        """The kernels of a target, in the order of their first launch."""
        return tuple(kernel for kernel in self.kernels if get_target(target).language in kernel.languages)

    def plan(self, target: str | Target, direction: Direction = "forward", short: tuple[int, ...] = ()) -> Plan:
        """The plan of attention or of its gradients for a target, the lists of some levels being short.

        Raises:
            UnsupportedError: The spec leaves gradients out.
        """
        for plan in self.plans_for(target):
            if plan.direction == direction:
                return lower(plan.spec, direction, short, joined=plan.joined) if short else plan
        hint = "build the spec with gradients: leave out --no-gradient"
        what = "this op was built without gradients"
        raise UnsupportedError(explain(what, where=self.slug, value="gradient = false", allowed="true", hint=hint))

    def kernel_of(self, plan: Plan, stage: Stage) -> KernelInstance:
        """The kernel that a stage of one of the plans launches."""
        key = stage.kernel(plan)
        return next(kernel for kernel in self.kernels if kernel.key == key)
