# SPDX-License-Identifier: Apache-2.0
"""Lowering: from a spec to the plan of its kernels, by a list of named passes."""

from llsa_gen.lowering.pipeline import PASSES, directions_of, lower, plans_of, trace, variants_of
from llsa_gen.lowering.resolve_depth import DepthChoice, DepthRow, choose_depth, resolve_depth

__all__ = [
    "PASSES",
    "DepthChoice",
    "DepthRow",
    "choose_depth",
    "directions_of",
    "lower",
    "plans_of",
    "resolve_depth",
    "trace",
    "variants_of",
]
