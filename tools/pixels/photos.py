# SPDX-License-Identifier: Apache-2.0
"""Real photographs that ship inside Python packages, cut into a region to train on and a region to test on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import cycle, islice, zip_longest
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llsa_gen.errors import ToolMissingError, explain

if TYPE_CHECKING:
    from PIL.Image import Image

INSTALL = "pip install 'llsa-gen[train]'"

HELD_OUT_SHARE = 1 / 3
"""Share of the longer axis of a photograph, at its beginning, that is never trained on: there is much to see there."""

SCALES = (3, 4, 6)
"""A photograph's shorter side in sides of a crop: a crop shows things, not only texture. Never enlarged."""

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels, the last two exclusive."""


@dataclass(frozen=True)
class Region:
    """A rectangle of a photograph.

    Attributes:
        name: The photograph.
        image: All of it.
        box: The rectangle.
    """

    name: str
    image: Image
    box: Box


def require_libraries() -> None:
    """Checks that what is needed for photographs and figures is installed, without importing it.

    Raises:
        ToolMissingError: A library is not.
    """
    for module, project in (("matplotlib", "matplotlib"), ("PIL", "Pillow"), ("sklearn", "scikit-learn")):
        if find_spec(module) is None:
            raise ToolMissingError(explain(f"training needs {project}, which is not installed", hint=INSTALL))


def photographs() -> dict[str, Image]:
    """The photographs by name: a portrait, a palace and a flower."""
    from matplotlib.cbook import get_sample_data
    from PIL import Image
    from sklearn.datasets import load_sample_images  # type: ignore[import-untyped]

    with Image.open(get_sample_data("grace_hopper.jpg", asfileobj=False)) as portrait:
        found = {"grace_hopper": portrait.convert("RGB")}
    samples = load_sample_images()
    for path, pixels in zip(samples.filenames, samples.images, strict=True):
        found[path.replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".jpg")] = Image.fromarray(pixels)
    return found


def split(width: int, height: int) -> tuple[Box, Box]:
    """The boxes for training and for testing: two rectangles that share no pixel and cover the photograph."""
    if width >= height:
        cut = round(width * HELD_OUT_SHARE)
        return (cut, 0, width, height), (0, 0, cut, height)
    cut = round(height * HELD_OUT_SHARE)
    return (0, cut, width, height), (0, 0, width, cut)


def regions() -> tuple[list[Region], list[Region]]:
    """The regions for training and for testing, one of each per photograph."""
    train, held_out = [], []
    for name, image in photographs().items():
        first, last = split(*image.size)
        train.append(Region(name, image, first))
        held_out.append(Region(name, image, last))
    return train, held_out


class Crops:
    """Square crops of regions at several scales, as RGB from -1 to 1.

    A region is cut out before it is scaled, so that no pixel outside of it takes part.
    """

    def __init__(self, source: Sequence[Region], size: int) -> None:
        self.size = size
        scaled = [_scaled(region, size) for region in source]
        self._pictures = [picture for scale in zip_longest(*scaled) for picture in scale if picture is not None]

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draws crops anywhere in any picture, half of them mirrored: [count,size,size,3]."""
        drawn = (self._pictures[_below(len(self._pictures), generator)] for _ in range(count))
        return torch.stack([self._crop(picture, generator) for picture in drawn])

    def draw_evenly(self, count: int, generator: torch.Generator) -> Tensor:
        """Draws from every picture in turn: [count,size,size,3]."""
        return torch.stack([self._crop(picture, generator) for picture in islice(cycle(self._pictures), count)])

    def _crop(self, picture: Tensor, generator: torch.Generator) -> Tensor:
        top = _below(picture.shape[0] - self.size + 1, generator)
        left = _below(picture.shape[1] - self.size + 1, generator)
        crop = picture[top : top + self.size, left : left + self.size]
        return crop.flip(1) if _below(2, generator) else crop


def _below(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (), generator=generator))


def _scaled(region: Region, size: int) -> list[Tensor]:
    """A region at every scale at which nothing is enlarged, [H,W,3]."""
    import numpy as np
    from PIL import Image

    part = region.image.crop(region.box)
    shorter = min(region.image.size)
    pictures = []
    for scale in SCALES:
        factor = scale * size / shorter
        if factor <= 1:
            sides = [max(size, round(side * factor)) for side in part.size]
            small = part.resize((sides[0], sides[1]), Image.Resampling.BOX)
            pictures.append(torch.from_numpy(np.asarray(small, dtype=np.float32) / 127.5 - 1))
    return pictures
