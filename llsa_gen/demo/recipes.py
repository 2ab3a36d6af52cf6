# SPDX-License-Identifier: Apache-2.0
"""What the heads of the demo compare: one row per head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Recipe:
    """What one head compares.

    Attributes:
        name: For titles and tables.
        channels: ``"colour"`` (brightness and two opponent colours) or ``"edges"`` (brightness and its gradient).
        blur: Standard deviation of the blur in pixels; 0 for none.
        look: Largest logit that equal looks contribute.
        near: Largest logit that nearness contributes.
    """

    name: str
    channels: Literal["colour", "edges"]
    blur: float
    look: float
    near: float


RECIPES = (
    Recipe("colour", "colour", 1.0, 14.0, 6.0),
    Recipe("smooth colour", "colour", 4.0, 14.0, 4.0),
    Recipe("edges", "edges", 1.0, 12.0, 6.0),
    Recipe("neighbourhood", "colour", 2.0, 8.0, 12.0),
    Recipe("smooth edges", "edges", 3.0, 12.0, 4.0),
    Recipe("palette", "colour", 2.0, 16.0, 1.0),
)
