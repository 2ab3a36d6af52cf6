# SPDX-License-Identifier: Apache-2.0
"""CPUs, of the machine at hand unless an instruction set is chosen; register tiles follow it, so no limits are here."""

from llsa_gen.targets.base import NATIVE, Target

TARGET = Target(name="cpu", kind="cpu", arch=NATIVE)
