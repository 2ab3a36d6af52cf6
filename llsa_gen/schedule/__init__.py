# SPDX-License-Identifier: Apache-2.0
"""How a kernel is run: tile sizes, threads and pipeline depth, solved from the limits of a target."""

from llsa_gen.schedule.solve import fits, joins, solve, space
from llsa_gen.schedule.types import Schedule

__all__ = ["Schedule", "fits", "joins", "solve", "space"]
