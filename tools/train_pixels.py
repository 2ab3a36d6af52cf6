#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Trains a small diffusion transformer on single pixels with LLSA, dense attention and two ablations of LLSA.

Crops of three photographs (held-out: regions of them that are never trained on) are sequences of pixels in Morton
order. Every arm is trained from the same seeds, on the same crops and noise, with flow matching; what is compared is
the held-out loss by noise level.

    python tools/train_pixels.py                        # 32x32 crops, four arms, three seeds
    python tools/train_pixels.py --quick                # the same in small, to see that it works
    python tools/train_pixels.py --resume --steps 1000  # goes on where the last run ended
    python tools/train_pixels.py --size 64 --levels 3 --device cuda --out pixels64

Writes into OUT: curves.png, samples.png, train.csv, heldout.csv, summary.csv, summary.json and checkpoints/. Ctrl-C
ends a run after the current step with a checkpoint. Needs: pip install 'llsa-gen[train]'.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console

from llsa_gen.errors import EXIT_OS_ERROR, LlsaError
from tools.pixels.arms import ARMS
from tools.pixels.experiment import Asked, postponed_interrupts, run
from tools.pixels.options import Options
from tools.pixels.photos import require_libraries
from tools.pixels.watch import Screen

EXIT_INTERRUPTED = 130

QUICK: dict[str, Any] = {
    "size": 16,
    "steps": 40,
    "seeds": 1,
    "width": 32,
    "depth": 2,
    "heads": 1,
    "evaluate_every": 20,
    "held_out_count": 9,
}
"""What --quick changes, unless an option says otherwise."""

_HELP = {
    "size": "side of a crop in pixels, 8 to 128",
    "steps": "training steps of every trial",
    "seeds": "number of seeds: 0, 1, ...",
    "levels": "depth of the LLSA hierarchy",
    "block": "tokens per block, a power of two",
    "k": "selected blocks on every level",
    "batch": "crops per step",
    "width": "features of a token",
    "depth": "transformer blocks",
    "heads": "attention heads",
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = {field.name: field.default for field in fields(Options)}
    for name, text in _HELP.items():
        made.add_argument(f"--{name}", type=int, metavar="N", help=f"{text} (default: {defaults[name]})")
    made.add_argument("--arms", nargs="+", metavar="ARM", help=f"what to compare (default: {' '.join(ARMS)})")
    made.add_argument("--device", metavar="NAME", help="cpu or cuda (default: cpu)")
    made.add_argument("--out", type=Path, metavar="DIR", help="folder to write into (default: pixels)")
    made.add_argument("--resume", action="store_true", help="go on from the checkpoints in OUT")
    made.add_argument("--quick", action="store_true", help="16x16 crops, one seed, a small network, 40 steps")
    made.add_argument("--json", action="store_true", help="print summary.json instead of the table")
    return made


def chosen_options(given: argparse.Namespace) -> Options:
    """The options of a run from those of the command line.

    Raises:
        LlsaError: One of them is not allowed.
    """
    named = {name: value for name, value in vars(given).items() if value is not None}
    chosen = {**(QUICK if given.quick else {}), **named}
    if "arms" in chosen:
        chosen["arms"] = tuple(chosen["arms"])
    return Options(**{field.name: chosen[field.name] for field in fields(Options) if field.name in chosen})


def train(options: Options, *, resume: bool, as_json: bool, asked: Asked) -> None:
    """Runs the experiment and writes and prints its results."""
    from tools.pixels import figures, summary

    console = Console(stderr=True)
    if options.coarsest_nodes <= options.k:
        console.print(f"note: level {options.levels} has {options.coarsest_nodes} nodes, all of them are selected")
    with Screen(options, console) as screen:
        outcome = run(options, resume=resume, watcher=screen, asked=asked)
    summaries = summary.summarise(outcome)
    summary.write_files(options.out, outcome, summaries)
    figures.draw_curves(options.out / "curves.png", outcome)
    figures.draw_samples(options.out / "samples.png", outcome)
    if as_json:
        print(json.dumps(summary.to_json(outcome, summaries), indent=2, allow_nan=False))
    else:
        Console(width=None if sys.stdout.isatty() else 160).print(summary.table(outcome, summaries))
        print(f"written: {options.out}/")


def main(arguments: list[str] | None = None) -> int:
    """Reads the options and runs; the exit status."""
    given = parser().parse_args(arguments)
    with postponed_interrupts() as asked:
        try:
            require_libraries()
            train(chosen_options(given), resume=given.resume, as_json=given.json, asked=asked)
        except (KeyboardInterrupt, LlsaError, OSError) as error:
            return _failure(error, interrupted=asked())
    return 0


def _failure(error: BaseException, *, interrupted: bool) -> int:
    """Tells what ended the run. A compiler dies of Ctrl-C too, and its failure may come first."""
    if interrupted or isinstance(error, KeyboardInterrupt):
        print("interrupted: --resume goes on from the last checkpoint", file=sys.stderr)
        return EXIT_INTERRUPTED
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code if isinstance(error, LlsaError) else EXIT_OS_ERROR


if __name__ == "__main__":
    sys.exit(main())
