# SPDX-License-Identifier: Apache-2.0
"""The kernels of a GPU as C code on a CPU: slow, and there to test on any machine what a GPU would run."""

from llsa_gen.targets.base import NATIVE, Target

TARGET = Target(name="c", kind="c", arch=NATIVE)
