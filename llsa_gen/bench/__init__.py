# SPDX-License-Identifier: Apache-2.0
"""The benchmark: attention against dense attention over the length, and inverted lists against a dense mask."""

from llsa_gen.bench.request import Request, check, memory_of
from llsa_gen.bench.runner import run

__all__ = ["Request", "check", "memory_of", "run"]
