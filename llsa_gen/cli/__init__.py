# SPDX-License-Identifier: Apache-2.0
"""The command line: one module per verb. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Runs ``llsa-gen`` with the arguments of the process and ends the process."""
    try:
        from llsa_gen.cli.app import program

        program.main()
    except KeyboardInterrupt:  # pressed before the program could handle it
        sys.exit(130)
    raise AssertionError("a program ends the process")
