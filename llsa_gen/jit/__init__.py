# SPDX-License-Identifier: Apache-2.0
"""Building and loading kernels: the only room that knows TileLang, nvcc and the C++ compiler."""

from llsa_gen.jit import cache, toolchain
from llsa_gen.jit.build import BuildEvent, BuiltKernel, build, build_kernel, built, kernel_digest
from llsa_gen.jit.compile import Resources
from llsa_gen.jit.load import Kernel, load_kernel, load_kernels

__all__ = [
    "BuildEvent",
    "BuiltKernel",
    "Kernel",
    "Resources",
    "build",
    "build_kernel",
    "built",
    "cache",
    "kernel_digest",
    "load_kernel",
    "load_kernels",
    "toolchain",
]
