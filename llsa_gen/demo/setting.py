# SPDX-License-Identifier: Apache-2.0
"""What the demo fixes: one attention configuration, and the limits of what can be asked for."""

from __future__ import annotations

PATCH = 4
"""Side in pixels of the square patch that a block of Morton tokens covers."""

BLOCK = PATCH**2

TOPK = 8
LEVELS = 2
HEAD_DIM = 64

SIZES = (32, 64, 128, 256, 512)
"""Side lengths: powers of two for which every node is complete, up to the resolution of the photograph."""

SAMPLED_ROWS = 256
"""Query rows that are compared with exact dense attention."""

INSTALL = "pip install 'llsa-gen[demo]'"
"""The command that installs what the demo needs besides torch."""


def patch_side(level: int) -> int:
    """Side in pixels of the patch below one node of a level."""
    return int(PATCH**level)
