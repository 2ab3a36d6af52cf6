# SPDX-License-Identifier: Apache-2.0
"""Building and loading kernels: the only room that knows TileLang, TVM, nvcc and the C++ compiler."""

from llsa_gen.jit import cache, toolchain
from llsa_gen.jit.architecture import architecture_of, for_isa
from llsa_gen.jit.build import BuildEvent, BuiltKernel, build, build_kernel, built, built_isas, widest_built
from llsa_gen.jit.compile import Resources
from llsa_gen.jit.identity import digest_with_schedule, digest_without_schedule
from llsa_gen.jit.load import Kernel, load_kernel, load_kernels
from llsa_gen.jit.machine import Machine, machine_of
from llsa_gen.jit.tuned import tuned

__all__ = [
    "BuildEvent",
    "BuiltKernel",
    "Kernel",
    "Machine",
    "Resources",
    "architecture_of",
    "build",
    "build_kernel",
    "built",
    "built_isas",
    "cache",
    "digest_with_schedule",
    "digest_without_schedule",
    "for_isa",
    "load_kernel",
    "load_kernels",
    "machine_of",
    "toolchain",
    "tuned",
    "widest_built",
]
