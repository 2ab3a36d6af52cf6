# SPDX-License-Identifier: Apache-2.0
"""The numbers of a run: held-out loss by arm and noise level, over seeds, as data, CSV, JSON and a table."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from tools.pixels.arms import TITLES
from tools.pixels.experiment import Outcome
from tools.pixels.flow import noise_scale
from tools.pixels.trial import NOISE_LEVELS

BASELINE = "dense"
MEAN = "mean"


@dataclass(frozen=True)
class Estimate:
    """A number measured from several seeds.

    Attributes:
        mean: Over the seeds.
        spread: Sample standard deviation; None for a single seed.
    """

    mean: float
    spread: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)

    def text(self, digits: int = 4) -> str:
        spread = "" if self.spread is None else f" ± {self.spread:.{digits}f}"
        return f"{self.mean:.{digits}f}{spread}"


@dataclass(frozen=True)
class ArmSummary:
    """What became of one arm.

    Attributes:
        arm: Its name.
        by_level: Final held-out loss at each of `NOISE_LEVELS`.
        overall: The mean of the levels.
        against_dense: Overall loss over that of dense attention minus one, paired by seed; None without that arm.
        step_seconds: Mean time of a training step.
    """

    arm: str
    by_level: tuple[Estimate, ...]
    overall: Estimate
    against_dense: Estimate | None
    step_seconds: float


def summarise(outcome: Outcome) -> list[ArmSummary]:
    """One summary per arm, in the order of the run."""
    seeds = range(outcome.options.seeds)
    final = {trial: curves.held_out[-1][1] for trial, curves in outcome.curves.items()}
    overall = {trial: statistics.fmean(losses) for trial, losses in final.items()}
    summaries = []
    for arm in outcome.options.arms:
        paired = None
        if BASELINE in outcome.options.arms and arm != BASELINE:
            paired = Estimate.of([overall[arm, seed] / overall[BASELINE, seed] - 1 for seed in seeds])
        curves = [outcome.curves[arm, seed] for seed in seeds]
        summaries.append(
            ArmSummary(
                arm,
                tuple(Estimate.of(values) for values in zip(*(final[arm, seed] for seed in seeds), strict=True)),
                Estimate.of([overall[arm, seed] for seed in seeds]),
                paired,
                sum(each.seconds for each in curves) / sum(len(each.train) for each in curves),
            )
        )
    return summaries


def to_json(outcome: Outcome, summaries: Iterable[ArmSummary]) -> dict[str, Any]:
    """Everything that somebody else needs to judge the numbers, without paths."""
    options = outcome.options
    return {
        "options": {**options.identity(), "steps": options.steps, "seeds": options.seeds, "device": options.device},
        "tokens": options.tokens,
        "coarsest_nodes": options.coarsest_nodes,
        "parameters": outcome.parameters,
        "noise_scale": noise_scale(options.size),
        "noise_levels": list(NOISE_LEVELS),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "arms": {
            summary.arm: {
                "held_out_loss": {
                    str(level): vars(estimate) for level, estimate in zip(NOISE_LEVELS, summary.by_level, strict=True)
                },
                "held_out_loss_mean": vars(summary.overall),
                "against_dense": None if summary.against_dense is None else vars(summary.against_dense),
                "step_seconds": summary.step_seconds,
                "seeds": {
                    str(seed): dict(zip(map(str, NOISE_LEVELS), curves.held_out[-1][1], strict=True))
                    for (arm, seed), curves in outcome.curves.items()
                    if arm == summary.arm
                },
            }
            for summary in summaries
        },
    }


def table(outcome: Outcome, summaries: Iterable[ArmSummary]) -> Table:
    """The held-out losses for a terminal."""
    options = outcome.options
    seeds = f"{options.seeds} seed{'s' if options.seeds > 1 else ''}"
    shown = Table(
        title=f"held-out loss after {options.steps} steps, {options.size}x{options.size} = {options.tokens:,} tokens, "
        f"{seeds}{', mean ± standard deviation' if options.seeds > 1 else ''}"
    )
    for heading in ("attention", *(f"t = {level}" for level in NOISE_LEVELS), MEAN, "against dense", "s / step"):
        shown.add_column(heading, justify="left" if heading == "attention" else "right", no_wrap=True)
    for summary in summaries:
        losses = [estimate.text() for estimate in (*summary.by_level, summary.overall)]
        shown.add_row(TITLES[summary.arm], *losses, _percent(summary.against_dense), f"{summary.step_seconds:.3f}")
    return shown


def _percent(ratio: Estimate | None) -> str:
    if ratio is None:
        return ""
    spread = "" if ratio.spread is None else f" ± {100 * ratio.spread:.1f}"
    return f"{100 * ratio.mean:+.1f}{spread} %"


def write_files(folder: Path, outcome: Outcome, summaries: Sequence[ArmSummary]) -> None:
    """Writes ``train.csv``, ``heldout.csv``, ``summary.csv`` and ``summary.json``."""
    trials = outcome.curves.items()
    _write_csv(
        folder / "train.csv",
        ("arm", "seed", "step", "loss"),
        ((arm, seed, step, loss) for (arm, seed), each in trials for step, loss in enumerate(each.train, 1)),
    )
    _write_csv(
        folder / "heldout.csv",
        ("arm", "seed", "step", "t", "loss"),
        (
            (arm, seed, step, level, loss)
            for (arm, seed), each in trials
            for step, losses in each.held_out
            for level, loss in zip(NOISE_LEVELS, losses, strict=True)
        ),
    )
    _write_csv(
        folder / "summary.csv",
        ("arm", "t", "mean", "spread"),
        (
            (summary.arm, level, estimate.mean, estimate.spread)
            for summary in summaries
            for level, estimate in zip((*NOISE_LEVELS, MEAN), (*summary.by_level, summary.overall), strict=True)
        ),
    )
    text = json.dumps(to_json(outcome, summaries), indent=2, allow_nan=False)
    (folder / "summary.json").write_text(f"{text}\n", encoding="utf-8")


def _write_csv(path: Path, heading: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(heading)
        writer.writerows(rows)
