# SPDX-License-Identifier: Apache-2.0
"""Progress of a run: a moving bar on a terminal, lines of text in a log."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tools.pixels.options import Options


class Screen:
    """Shows how far a run is; used as a context."""

    def __init__(self, options: Options, console: Console) -> None:
        self._options, self._console = options, console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
            console=console,
            disable=not console.is_terminal,
        )
        trials = len(options.arms) * options.seeds
        self._task = self._progress.add_task("training", total=trials * options.steps, loss="")
        self._recent = 0.0

    def __enter__(self) -> Screen:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def begin(self, arm: str, seed: int, step: int) -> None:
        """A trial starts, or goes on after a number of steps."""
        self._progress.update(self._task, description=f"{arm}, seed {seed}", advance=step)

    def advance(self, loss: float) -> None:
        """A training step is done."""
        self._recent = loss if not self._recent else 0.95 * self._recent + 0.05 * loss
        self._progress.update(self._task, advance=1, loss=f"loss {self._recent:.3f}")

    def measured(self, arm: str, seed: int, step: int, loss: float) -> None:
        """The mean held-out loss is known after a number of steps."""
        if step >= self._options.steps or not self._console.is_terminal:
            self._console.print(f"{arm}, seed {seed}: held-out loss {loss:.4f} after {step} steps", highlight=False)
