# SPDX-License-Identifier: Apache-2.0
"""The photograph: matplotlib's sample portrait of Grace Hopper, a square of it, and places worth asking about."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from llsa_gen.demo.setting import INSTALL
from llsa_gen.errors import ToolMissingError, explain

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SAMPLE = "grace_hopper.jpg"
_CROP = (36, 14, 484, 462)
"""Left, top, right, bottom in the sample: hat, face, collar, flag and sky."""


@dataclass(frozen=True)
class Landmark:
    """A pixel that the picture asks about, in fractions of the photograph's side."""

    name: str
    across: float
    down: float

    def pixel(self, size: int) -> tuple[int, int]:
        """Row and column in a photograph of the given side."""
        return int(self.down * size), int(self.across * size)


def _landmark(name: str, x: int, y: int) -> Landmark:
    """A landmark from the sample's own pixel coordinates."""
    left, top, right, bottom = _CROP
    return Landmark(name, (x - left) / (right - left), (y - top) / (bottom - top))


LANDMARKS = (
    _landmark("an eye", 302, 187),
    _landmark("a star of the flag", 66, 86),
    _landmark("the edge of the jacket", 356, 344),
    _landmark("the plain background", 440, 150),
)


def require_libraries() -> None:
    """Checks that matplotlib and Pillow are installed, without importing them.

    Raises:
        ToolMissingError: One of them is not.
    """
    for module, project in (("matplotlib", "matplotlib"), ("PIL", "Pillow")):
        if find_spec(module) is None:
            raise ToolMissingError(explain(f"the demo needs {project}, which is not installed", hint=INSTALL))


def load_photo(size: int) -> NDArray[np.float32]:
    """The square of the photograph at the given side: RGB from 0 to 1, float32 [size, size, 3].

    Raises:
        ToolMissingError: matplotlib was installed without its sample data.
    """
    import numpy as np
    from matplotlib.cbook import get_sample_data
    from PIL import Image

    try:
        with Image.open(get_sample_data(_SAMPLE, asfileobj=False)) as image:
            square = image.convert("RGB").resize((size, size), Image.Resampling.BOX, box=_CROP)
    except FileNotFoundError as error:
        what = "the photograph is missing: this matplotlib was installed without its sample data"
        hint = "pip install --force-reinstall matplotlib"
        raise ToolMissingError(explain(what, where=_SAMPLE, hint=hint)) from error
    return np.asarray(square, dtype=np.float32) / 255.0
