# SPDX-License-Identifier: Apache-2.0
"""The pictures of a run: loss curves and samples."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.pixels.arms import TITLES
from tools.pixels.experiment import Outcome
from tools.pixels.flow import EULER_STEPS
from tools.pixels.trial import NOISE_LEVELS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray
    from torch import Tensor

COLOURS = {"dense": "#555555", "llsa": "#0072b2", "no-enrichment": "#d55e00", "no-reweighting": "#009e73"}
SMOOTHED = 25
"""Steps over which a training curve is averaged: single steps differ by their noise levels above all."""


def draw_curves(path: Path, outcome: Outcome) -> None:
    """Draws training and held-out loss over steps, a thin line per seed and a thick one for their mean."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for arm in outcome.options.arms:
        seeds = [outcome.curves[arm, seed] for seed in range(outcome.options.seeds)]
        trained = [_smoothed(curves.train) for curves in seeds]
        steps = list(range(len(seeds[0].train) - len(trained[0]) + 1, len(seeds[0].train) + 1))
        _draw_arm(left, arm, steps, trained)
        measured = [[statistics.fmean(losses) for _, losses in curves.held_out] for curves in seeds]
        _draw_arm(right, arm, [step for step, _ in seeds[0].held_out], measured)
    width = len(outcome.curves[outcome.options.arms[0], 0].train) - len(trained[0]) + 1
    _finish(left, f"training loss, mean of {width} steps")
    _finish(right, f"held-out loss, mean of t = {', '.join(map(str, NOISE_LEVELS))}")
    figure.savefig(path, dpi=120)


def _smoothed(losses: list[float]) -> list[float]:
    """Running means; of fewer steps where there are few."""
    width = min(SMOOTHED, max(1, len(losses) // 4))
    return [statistics.fmean(losses[end - width : end]) for end in range(width, len(losses) + 1)]


def _draw_arm(axes: Axes, arm: str, steps: list[int], seeds: list[list[float]]) -> None:
    colour, marker = COLOURS[arm], "o" if len(steps) < 30 else ""
    for losses in seeds if len(seeds) > 1 else ():
        axes.plot(steps, losses, color=colour, linewidth=0.6, alpha=0.45)
    mean = [statistics.fmean(values) for values in zip(*seeds, strict=True)]
    axes.plot(steps, mean, color=colour, linewidth=1.8, marker=marker, markersize=3, label=TITLES[arm])


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("step")
    axes.set_yscale("log")
    for label in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        label("{x:g}")
    axes.grid(visible=True, which="both", linewidth=0.3)
    axes.tick_params(axis="y", which="both", labelsize=8)
    axes.legend(fontsize=8)


def draw_samples(path: Path, outcome: Outcome) -> None:
    """Draws a row of held-out crops and, below, what each arm makes of the same noise."""
    from matplotlib.figure import Figure

    rows = {"held-out crops": outcome.real}
    rows |= {TITLES[arm]: images for arm, images in outcome.samples.items()}
    columns = outcome.options.sample_count
    figure = Figure(figsize=(1.15 * columns + 1.7, 1.15 * len(rows) + 0.5), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, (title, images) in zip(grid, rows.items(), strict=True):
        for axes in line:
            axes.set_axis_off()
        for axes, image in zip(line, images, strict=False):
            axes.imshow(_visible(image), interpolation="nearest")
        line[0].text(-0.08, 0.5, title, transform=line[0].transAxes, ha="right", va="center", fontsize=9)
    steps = outcome.options.steps
    figure.suptitle(f"after {steps} steps: {EULER_STEPS} Euler steps from the same noise", fontsize=9)
    figure.savefig(path, dpi=120)


def _visible(image: Tensor) -> NDArray[Any]:
    """RGB from -1 to 1 as RGB from 0 to 1."""
    shown: NDArray[Any] = ((image + 1) / 2).clamp(0, 1).numpy()
    return shown
