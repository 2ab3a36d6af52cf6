# SPDX-License-Identifier: Apache-2.0
"""The pictures: time, speed-up and rates over the length, and inverted lists beside the dense mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llsa_gen.bench.rows import FORWARD, TRAINING, Row
from llsa_gen.bench.summary import curve
from llsa_gen.bench.transpose import FORMS, GRADIENT, INVERTED, MASKED, TRANSPOSE, TransposeRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT = "#1f2430", "#9aa1ad"
COLOURS = {"llsa": "#0b6e8a", "sdpa": "#c4512d", "flex": "#7a5ea8", INVERTED: "#0b6e8a", MASKED: "#c4512d"}
LABELS = {"llsa": "LLSA", "sdpa": "SDPA (dense)", "flex": "FlexAttention, lists given"}
STYLES = {FORWARD: "-", TRAINING: "--"}
STAGES = ("#0b6e8a", "#3a9d6e", "#c4512d", "#d99a2b", "#7a5ea8", "#5c6773", "#b34a78", "#4a78b3", "#8a8a3a", "#222222")
SHOWN_STAGES = 6
"""Stages of a direction that are drawn: those that compute the most at the longest length."""


def draw_attention(path: Path, rows: Sequence[Row], data: dict[str, Any]) -> None:
    """Time, speed-up, and the share of the machine's matmul rate that stages reach."""
    figure, axes = _begin(4, data, "LLSA against dense attention")
    _times(axes[0], rows)
    _speed_up(axes[1], rows)
    for place, direction in enumerate(("forward", "backward"), 2):
        _shares(axes[place], rows, direction)
    _save(figure, path)


def draw_transpose(path: Path, rows: Sequence[TransposeRow], data: dict[str, Any]) -> None:
    """Throughput of the gradient, time of the transpose, and memory."""
    figure, axes = _begin(3, data, "Inverted lists against a dense mask")
    panels: tuple[tuple[str, str, Callable[[TransposeRow], float]], ...] = (
        (GRADIENT, "key/value gradient, million tokens per second", lambda row: row.tokens / row.seconds / 1e6),
        (TRANSPOSE, "transpose alone, seconds", lambda row: row.seconds),
        (TRANSPOSE, "transpose alone, MiB held", lambda row: row.held / 2**20),
    )
    for axis, (part, title, of) in zip(axes, panels, strict=True):
        for form in FORMS:
            found = [(row.tokens, of(row)) for row in rows if (row.part, row.form) == (part, form)]
            if found:
                axis.plot(*zip(*found, strict=True), "o-", color=COLOURS[form], label=form)
        _finish(axis, title, lengths_of(rows))
    _save(figure, path)


def _begin(panels: int, data: dict[str, Any], title: str) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    columns = 2 if panels == 4 else panels
    figure = Figure(figsize=(6.2 * columns, 5.6 * (panels // columns) + 0.9), layout="constrained")
    axes = figure.subplots(panels // columns, columns, squeeze=False)
    slugs = list(dict.fromkeys(point["slug"] for point in data["points"]))
    machine, heads = data["machine"], data["request"]["heads"]
    here = f"{machine['processor']}, {machine['isa']}, {machine['threads']} threads"
    about = f"{', '.join(slugs)}   {heads} heads   {here}"
    figure.suptitle(f"{title}\n{about}", color=INK, fontsize=12.5)
    return figure, list(axes.flat)


def _times(axis: Axes, rows: Sequence[Row]) -> None:
    """Medians with the spread between percentiles; what was extrapolated has hollow marks."""
    for name, label in LABELS.items():
        for part, style in STYLES.items():
            found = [row for row in rows if (row.part, row.name) == (part, name)]
            if not found:
                continue
            tokens, seconds = [row.tokens for row in found], [row.seconds for row in found]
            colour = COLOURS[name]
            axis.fill_between(tokens, [r.p10 for r in found], [r.p90 for r in found], color=colour, alpha=0.15, lw=0)
            axis.plot(tokens, seconds, style, color=colour, label=f"{label}, {part}")
            for row in found:
                fill = colour if row.factor == 1.0 else "white"
                axis.plot(row.tokens, row.seconds, "o", color=colour, markerfacecolor=fill, markersize=6)
    for part, style in (("forward", ":"), (TRAINING, "-.")):
        model = curve(rows, part, "llsa", lambda row: row.predicted or 0.0)
        if model:
            axis.plot(*zip(*model, strict=True), style, color=FAINT, label=f"LLSA by the model, {part}")
    _finish(axis, "seconds (band: 10th–90th percentile; hollow: from some query rows)", lengths_of(rows))


def _speed_up(axis: Axes, rows: Sequence[Row]) -> None:
    for part, style in STYLES.items():
        dense = dict(curve(rows, part, "sdpa"))
        found = [(at, dense[at] / seconds) for at, seconds in curve(rows, part, "llsa") if at in dense]
        if found:
            axis.plot(*zip(*found, strict=True), f"o{style}", color=COLOURS["llsa"], label=part)
    axis.axhline(1.0, color=FAINT, linewidth=1)
    _finish(axis, "times faster than SDPA", lengths_of(rows))


def _shares(axis: Axes, rows: Sequence[Row], direction: str) -> None:
    """The rates of the stages that compute the most."""
    some = [row for row in rows if row.part == f"stages of {direction}" and row.flops]
    longest = max((row.tokens for row in some), default=0)
    ranked = sorted((row for row in some if row.tokens == longest), key=lambda row: -row.flops)
    for colour, top in zip(STAGES, ranked[:SHOWN_STAGES], strict=False):
        found = [(row.tokens, 100 * row.matmul_share) for row in some if row.name == top.name]
        axis.plot(*zip(*found, strict=True), "o-", color=colour, label=top.name)
    axis.axhline(100.0, color=FAINT, linewidth=1)
    _finish(axis, f"stages of {direction}: per cent of the machine's matmul rate", lengths_of(rows), linear=True)


def _finish(axis: Axes, title: str, lengths: Sequence[int], *, linear: bool = False) -> None:
    """Scales, ticks at the measured lengths, and a legend below."""
    axis.set_title(title, fontsize=10.5, color=INK, loc="left")
    if not axis.get_legend_handles_labels()[0]:
        axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", color=FAINT)
        return
    axis.set_xscale("log", base=2)
    axis.set_xticks(lengths, [_length(at) for at in lengths])
    axis.xaxis.minorticks_off()
    if linear:
        axis.set_ylim(bottom=0)
    else:
        _plain_decades(axis)
    axis.grid(visible=True, which="major", color="#e3e6eb", linewidth=0.8)
    axis.legend(frameon=False, fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.07))
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _plain_decades(axis: Axes) -> None:
    """A logarithmic scale whose marks are numbers, more of them where it spans little."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axis.set_yscale("log")
    low, high = axis.get_ylim()
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 300 * low else (1.0,)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _place: f"{value:g}"))
    axis.yaxis.minorticks_off()


def lengths_of(rows: Sequence[Row] | Sequence[TransposeRow]) -> list[int]:
    """The lengths of some rows, ascending."""
    return sorted({row.tokens for row in rows})


def _length(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens % 1024 == 0 else f"{tokens:,}"


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path, format="png", dpi=110)
