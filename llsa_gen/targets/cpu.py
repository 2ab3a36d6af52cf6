# SPDX-License-Identifier: Apache-2.0
"""CPUs, with the instruction set of the machine that builds; register tiles follow it, so there are no limits here."""

from llsa_gen.targets.base import Target

TARGET = Target(name="cpu", kind="cpu", arch="native")
