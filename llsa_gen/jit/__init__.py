# SPDX-License-Identifier: Apache-2.0
"""Building and loading kernels: the only room that knows TileLang, nvcc and the C++ compiler."""

from llsa_gen.jit import cache, toolchain
from llsa_gen.jit.build import BuildEvent, BuiltKernel, build, build_kernel, built
from llsa_gen.jit.compile import Resources
from llsa_gen.jit.identity import kernel_digest, kernel_identity
from llsa_gen.jit.load import Kernel, load_kernel, load_kernels
from llsa_gen.jit.machine import Machine, machine_of
from llsa_gen.jit.tuned import tuned

__all__ = [
    "BuildEvent",
    "BuiltKernel",
    "Kernel",
    "Machine",
    "Resources",
    "build",
    "build_kernel",
    "built",
    "cache",
    "kernel_digest",
    "kernel_identity",
    "load_kernel",
    "load_kernels",
    "machine_of",
    "toolchain",
    "tuned",
]
