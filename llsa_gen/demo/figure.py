# SPDX-License-Identifier: Apache-2.0
"""Draw: for a few pixels, the regions that each level attends, and the attention that every pixel of the photo gets."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llsa_gen.demo.attended import dense_weights, llsa_weights, resolution, shares
from llsa_gen.demo.photo import Landmark
from llsa_gen.demo.setting import LEVELS, patch_side
from llsa_gen.orders import inverse

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from llsa_gen.demo.report import DemoReport

INK = "#22262b"
QUERY = "#00c2e0"
HEAT = "YlOrRd"
BADGE = {"facecolor": INK, "edgecolor": "none", "pad": 1.8}
LEFT = 0.04
FAINTEST = 1e-4
"""Attention below this part of the largest is drawn as none."""

CLOSE_UP = 40
"""Pixels across the close-up around the query; a photograph with fewer than four times as many needs none."""

CORNER = 0.36
"""Side of the close-up as a part of the panel."""


@dataclass(frozen=True)
class Look:
    """How the regions of one level are drawn: fill, how strongly it covers the photograph, and the borders."""

    fill: str
    strength: float
    edge: str
    line: float


LOOKS = (
    Look("#e03e1a", 0.85, "#7a1500", 0.5),
    Look("#f5b62e", 0.80, "#8a5a00", 0.3),
    Look("#8d9399", 0.0, "#ffffff", 0.45),
)
"""One row per level, the tokens first."""


@dataclass(frozen=True)
class Query:
    """One pixel and what it attends, as images in raster order.

    Attributes:
        name: What the pixel shows.
        row: Row of the pixel.
        column: Column of the pixel.
        levels: Finest level at which each pixel is attended, [size, size].
        llsa: Weight that each pixel receives from LLSA, [size, size].
        dense: Weight that each pixel receives from dense attention, [size, size].
        dense_mass: Share of the dense attention at each level of resolution.
    """

    name: str
    row: int
    column: int
    levels: NDArray[np.int8]
    llsa: NDArray[np.float64]
    dense: NDArray[np.float64]
    dense_mass: tuple[float, ...]


def look_closely(
    landmarks: Sequence[Landmark], q: Tensor, k: Tensor, lists: Sequence[Tensor], order: Tensor
) -> list[Query]:
    """Finds out what the pixels at the landmarks attend in one head.

    Args:
        landmarks: The pixels.
        q: Queries of the head, [tokens, D].
        k: Keys of the head, [tokens, D].
        lists: The head's selection, index 0 = level 1.
        order: Raster number of every token.
    """
    import torch

    size, back = round(len(order) ** 0.5), inverse(order)
    pixels = [landmark.pixel(size) for landmark in landmarks]
    rows = back[torch.tensor([row * size + column for row, column in pixels])]
    found = resolution(lists, rows, len(order))
    llsa, dense = llsa_weights(q, k, rows, found, len(lists)), dense_weights(q, k, rows)
    levels, llsa_image, dense_image = (x[:, back].view(-1, size, size).numpy() for x in (found, llsa, dense))
    mass = [shares(dense[i : i + 1], found[i : i + 1], len(lists)) for i in range(len(rows))]
    return [
        Query(landmark.name, *pixels[i], levels[i], llsa_image[i], dense_image[i], mass[i])
        for i, landmark in enumerate(landmarks)
    ]


def draw(photo: NDArray[np.float32], queries: Sequence[Query], report: DemoReport) -> None:
    """Writes the picture to ``report.path``: a column per pixel; what LLSA reads, its attention, dense attention.

    The file appears whole or not at all.

    Args:
        photo: RGB from 0 to 1, [size, size, 3].
        queries: The pixels to show.
        report: Gives the numbers of the titles and the path.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(queries) + 0.5, 13.2), facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.subplots(3, len(queries), squeeze=False)
    figure.subplots_adjust(left=0.04, right=0.985, top=0.85, bottom=0.07, wspace=0.05, hspace=0.12)
    grey = photo.mean(-1, keepdims=True)
    for column, query in enumerate(queries):
        _draw_regions(grid[0, column], grey, query)
        _draw_weights(grid[1, column], grey, query.llsa, query)
        _draw_weights(grid[2, column], grey, query.dense, query)
    _label_rows(grid[:, 0], report)
    _write_titles(figure, report)
    _write_legend(figure)
    _write_scale(figure)
    _save(figure, report)


def _draw_regions(axes: Axes, grey: NDArray[np.float32], query: Query) -> None:
    """The photograph in grey, tinted where it is resolved more finely; in a large one also a close-up."""
    axes.set_title(f"query: {query.name}", fontsize=13, color=INK, fontweight="bold", pad=7)
    picture = _tinted(grey, query.levels)
    _draw_patches(axes, picture, query.levels, 1.0)
    _mark(axes, query)
    _frame(axes)
    if len(grey) >= 4 * CLOSE_UP:
        _draw_close_up(axes, picture, query)
    _write_mass(axes, query)


def _draw_close_up(axes: Axes, picture: NDArray[np.float32], query: Query) -> None:
    size, half = len(picture), CLOSE_UP // 2
    close = axes.inset_axes(_emptiest_corner(query.levels < LEVELS))
    _draw_patches(close, picture, query.levels, 2.2)
    close.plot(query.column, query.row, "o", markersize=5, markerfacecolor=QUERY, markeredgecolor=INK)
    row, column = (min(max(center, half), size - half) - 0.5 for center in (query.row, query.column))
    close.set(xlim=(column - half, column + half), ylim=(row + half, row - half))
    _frame(close, INK)
    close.text(0.04, 0.95, "close-up", transform=close.transAxes, fontsize=8.5, color="white", va="top", bbox=BADGE)


def _tinted(grey: NDArray[np.float32], levels: NDArray[np.int8]) -> NDArray[np.float32]:
    from matplotlib.colors import to_rgb

    picture = np.repeat(0.36 + 0.46 * grey, 3, axis=-1)
    for level, look in enumerate(LOOKS):
        shade = np.asarray(to_rgb(look.fill), dtype=np.float32) * (0.82 + 0.18 * grey)
        where = levels == level
        picture[where] = ((1 - look.strength) * picture + look.strength * shade)[where]
    return np.asarray(picture, dtype=np.float32)


def _draw_patches(axes: Axes, picture: NDArray[np.float32], levels: NDArray[np.int8], zoom: float) -> None:
    """The tinted picture with the borders of the patches that are read as one key (for level 0, of whole blocks)."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    axes.imshow(picture, interpolation="nearest")
    for level in range(LEVELS, -1, -1):
        side, look = patch_side(max(level, 1)), LOOKS[level]
        corners = np.argwhere(levels[::side, ::side] == level)
        boxes = [Rectangle((x * side - 0.5, y * side - 0.5), side, side) for y, x in corners]
        axes.add_collection(PatchCollection(boxes, facecolor="none", edgecolor=look.edge, linewidth=look.line * zoom))


def _emptiest_corner(busy: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """The corner, as bounds within the axes, where a close-up hides the least of `busy`."""
    side = round(len(busy) * CORNER)
    hidden = {
        (0.0, 1 - CORNER): busy[:side, :side],
        (1 - CORNER, 1 - CORNER): busy[:side, -side:],
        (0.0, 0.0): busy[-side:, :side],
        (1 - CORNER, 0.0): busy[-side:, -side:],
    }
    across, up = min(hidden, key=lambda corner: int(hidden[corner].sum()))
    return across, up, CORNER, CORNER


def _write_mass(axes: Axes, query: Query) -> None:
    """Under the regions: the share of the dense attention that falls on each colour."""
    style: dict[str, Any] = {"transform": axes.transAxes, "fontsize": 10.5, "va": "top"}
    axes.text(0.0, -0.025, "dense attention on", color=INK, **style)
    for place, (share, look) in enumerate(zip(query.dense_mass, LOOKS, strict=True)):
        x = 0.45 + 0.19 * place
        axes.text(x, -0.025, "■", color=look.fill, **style)
        axes.text(x + 0.045, -0.025, f"{share:.0%}", color=INK, fontweight="bold", **style)


def _draw_weights(axes: Axes, grey: NDArray[np.float32], weights: NDArray[np.float64], query: Query) -> None:
    """The attention of every pixel relative to the largest dense one, on a logarithmic scale over the photograph."""
    from matplotlib import colormaps

    relative = np.clip(weights / query.dense.max(), FAINTEST, 1.0)
    strength = 1 - np.log10(relative)[..., None] / np.log10(FAINTEST)
    cover = np.minimum(3 * strength, 1.0)
    heat = colormaps[HEAT](strength[..., 0])[..., :3]
    axes.imshow(cover * heat + (1 - cover) * (0.80 + 0.18 * grey), interpolation="nearest")
    _mark(axes, query)
    _frame(axes)


def _mark(axes: Axes, query: Query) -> None:
    for colour, width in ((INK, 3.0), (QUERY, 1.6)):
        ring: dict[str, Any] = {
            "markersize": 15,
            "markerfacecolor": "none",
            "markeredgecolor": colour,
            "markeredgewidth": width,
        }
        axes.plot(query.column, query.row, "o", **ring)


def _frame(axes: Axes, colour: str | None = None) -> None:
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=colour is not None, color=colour or "none", linewidth=1.5)


def _label_rows(column: Iterable[Axes], report: DemoReport) -> None:
    labels = (
        f"what LLSA reads: {report.keys_per_query:,} keys",
        "attention by LLSA",
        f"dense attention: {report.tokens:,} keys",
    )
    for axes, label in zip(column, labels, strict=True):
        axes.set_ylabel(label, fontsize=12.5, color=INK, fontweight="bold", labelpad=9)


def _write_titles(figure: Figure, report: DemoReport) -> None:
    head = report.heads[0]
    title = f"LLSA reads {report.keys_per_query:,} keys per query where dense attention reads {report.tokens:,}"
    figure.text(LEFT, 0.977, title, fontsize=19, fontweight="bold", color=INK, va="center")
    how = f"scaled up from {report.dense_rows:,} of {report.tokens:,} rows" if report.dense_is_scaled else "measured"
    lines = (
        f"Every pixel of a {report.size}×{report.size} photograph is a token. For the pixel in the ring, LLSA reads "
        "the whole picture coarsely, what looks relevant finer, and the best of that pixel by pixel.",
        f"Head “{head.name}”: relative error of the output against dense attention {head.relative_error:.1%}.   "
        f"Time on {report.threads} CPU threads, {len(report.heads)} heads: LLSA {report.llsa_seconds:.2g} s, "
        f"dense {report.dense_seconds:.2g} s ({how}).",
    )
    for place, line in enumerate(lines):
        figure.text(LEFT, 0.948 - 0.0195 * place, line, fontsize=11.5, color=INK, va="center")


def _write_legend(figure: Figure) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    labels = ["read pixel by pixel"]
    for level in range(1, LEVELS + 1):
        side, place = patch_side(level), ", everywhere" if level == LEVELS else ""
        labels.append(f"read as one mean per {side}×{side} patch (level {level}{place})")
    ring: dict[str, Any] = {"markersize": 11, "markerfacecolor": "none", "markeredgecolor": QUERY, "markeredgewidth": 2}
    handles: list[Any] = [Line2D([], [], marker="o", linestyle="", label="query pixel", **ring)]
    handles += [
        Patch(facecolor=look.fill, edgecolor=INK, label=label) for label, look in zip(labels, LOOKS, strict=True)
    ]
    anchor = (LEFT - 0.008, 0.917)
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=anchor, ncols=len(handles), fontsize=12, frameon=False
    )


def _write_scale(figure: Figure) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LogNorm

    bar = figure.colorbar(
        ScalarMappable(LogNorm(FAINTEST, 1.0), HEAT),
        cax=figure.add_axes((LEFT, 0.038, 0.3, 0.011)),
        orientation="horizontal",
    )
    bar.set_label("attention a pixel receives, relative to the largest dense one", fontsize=10.5, color=INK)
    notes = (
        "Lower rows: one colour scale per column. Squares in the middle row are patches that LLSA reads as one mean.",
        "Percentages: the share of the dense attention that falls on the regions of each colour.",
    )
    for place, note in enumerate(notes):
        figure.text(LEFT + 0.335, 0.043 - 0.018 * place, note, fontsize=10.5, color=INK, va="center")


def _save(figure: Figure, report: DemoReport) -> None:
    """Writes beside the target and renames."""
    half = report.path.with_name(f".{report.path.name}.{os.getpid()}.part")
    try:
        figure.savefig(half, format="png", dpi=110)
        half.replace(report.path)
    finally:
        half.unlink(missing_ok=True)
