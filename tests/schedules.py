# SPDX-License-Identifier: Apache-2.0
"""Kernels of a CPU by name and with any of their schedules, for tests of the tuner."""

from __future__ import annotations

from llsa_gen import jit
from llsa_gen.codegen import KernelInstance, render
from llsa_gen.jit import Kernel
from llsa_gen.schedule import Schedule
from llsa_gen.spec import Spec
from llsa_gen.targets import get_target

CPU = get_target("cpu")


def kernel_named(spec: Spec, name: str) -> KernelInstance:
    """The kernel of a spec that has a name."""
    return next(kernel for kernel in render(spec).kernels if kernel.name == name)


def loaded(spec: Spec, kernel: KernelInstance, schedule: Schedule) -> Kernel:
    """A kernel with a schedule, built when it is missing."""
    jit.build_kernel(render(spec), kernel.with_schedule("cpu", schedule), "cpu")
    found = jit.load_kernel(render(spec), kernel.with_schedule("cpu", schedule), "cpu")
    assert found is not None
    return found
