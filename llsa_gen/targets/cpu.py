# SPDX-License-Identifier: Apache-2.0
"""Any CPU that the compilers serve; its vector width is the compiler's to find, so there are no limits here."""

from llsa_gen.targets.base import Target

TARGET = Target(name="cpu", kind="cpu", arch="native")
