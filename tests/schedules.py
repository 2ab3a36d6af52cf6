# SPDX-License-Identifier: Apache-2.0
"""Kernels of a CPU by name with any of their schedules and with records of them, for tests of the tuner."""

from __future__ import annotations

from llsa_gen import jit
from llsa_gen.codegen import KernelInstance, render
from llsa_gen.jit import Kernel, Machine, digest_without_schedule, machine_of
from llsa_gen.jit.records import Record
from llsa_gen.schedule import Schedule, solve, space
from llsa_gen.spec import Spec
from llsa_gen.targets import get_target

CPU = get_target("cpu")


def kernel_named(spec: Spec, name: str) -> KernelInstance:
    """The kernel of a spec for CPUs that has a name."""
    return next(kernel for kernel in render(spec).kernels_for(CPU) if kernel.name == name)


def loaded(spec: Spec, kernel: KernelInstance, schedule: Schedule) -> Kernel:
    """A kernel with a schedule, built when it is missing."""
    jit.build_kernel(render(spec), kernel.with_schedule("cpu", schedule), "cpu")
    found = jit.load_kernel(render(spec), kernel.with_schedule("cpu", schedule), "cpu")
    assert found is not None
    return found


def recorded(spec: Spec, name: str, schedule: Schedule | None, machine: Machine | None = None) -> Record:
    """A record of a kernel of a spec that takes a schedule."""
    kernel = kernel_named(spec, name)
    identity = digest_without_schedule(render(spec), kernel, CPU)
    return Record(name, identity, machine or machine_of("cpu"), {}, {"batch": 1}, chosen=schedule, complete=True)


def other_schedule(spec: Spec, name: str) -> Schedule:
    """A schedule of a kernel that is not the default."""
    kernel = kernel_named(spec, name)
    return next(each for each in space(kernel.key, spec, CPU) if each != solve(kernel.key, spec, CPU))
