# SPDX-License-Identifier: Apache-2.0
"""Environment variables that switch something on or off, and the words that they are switched off with."""

from __future__ import annotations

import os

BUILD_VARIABLE = "LLSA_GEN_BUILD"
"""Environment variable: switched off, calls build no kernels on first use."""

DEBUG_VARIABLE = "LLSA_GEN_DEBUG"
"""Environment variable: switched on, the command line shows the traceback of an error."""

OFF_WORDS = ("0", "false", "no", "off")
"""What switches off, in any case; an empty variable is one that is not set."""


def is_off(variable: str) -> bool:
    """Whether a variable is set to a word for off."""
    return _value(variable) in OFF_WORDS


def is_on(variable: str) -> bool:
    """Whether a variable is set to anything else."""
    return bool(_value(variable)) and not is_off(variable)


def _value(variable: str) -> str:
    return os.environ.get(variable, "").strip().lower()
