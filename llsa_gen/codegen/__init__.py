# SPDX-License-Identifier: Apache-2.0
"""Generated code: rendering it, writing it, and checking that what is committed is what would be generated."""

from llsa_gen.codegen.check import Finding, check
from llsa_gen.codegen.package import KernelInstance, KernelPackage
from llsa_gen.codegen.render import render
from llsa_gen.codegen.write import WriteResult, write

__all__ = ["Finding", "KernelInstance", "KernelPackage", "WriteResult", "check", "render", "write"]
