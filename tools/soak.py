#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares gradients many times: specs and inputs in which every two values of every two fields meet.

    python tools/soak.py                               # 10,000 comparisons, one of eight of kernels, which are built
    python tools/soak.py --comparisons 500 --kernels 0 # plans alone: nothing is compiled
    python tools/fuzz.py --replay soak/failures/X.json # one failure again

A comparison is one case, with the gradients of q, k and v against the reference's autograd: of the plan in fp64 (a few
units of roundoff are allowed), of the plan in fp32 and of the CPU kernels (the error rule). Writes OUT/soak.json with
the counts, and OUT/failures/*.json. Exit status: 0 all right, 1 something is wrong, 2 a wrong option, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from llsa_gen.errors import InputError, LlsaError, explain
from tools.campaign.grid import FIELDS, numbered, rows
from tools.campaign.pairs import all_pairs, covering
from tools.campaign.run import EXIT_FOUND, Progress, attempt, ended_by, failures_folder, report


@dataclass
class Tally:
    """What was compared so far.

    Attributes:
        done: Comparisons by check.
        specs: Slugs of the specs that were met.
        built: Slugs of those whose kernels ran.
        failures: Number of cases that failed.
    """

    done: Counter[str] = field(default_factory=Counter)
    specs: set[str] = field(default_factory=set)
    built: set[str] = field(default_factory=set)
    failures: int = 0

    def to_json(self, seed: int, seconds: float) -> dict[str, Any]:
        """As plain data."""
        return {
            "comparisons": self.done.total(),
            "by_check": dict(sorted(self.done.items())),
            "specs": len(self.specs),
            "specs_with_kernels": len(self.built),
            "rows": len(covering(FIELDS)),
            "pairs_covered": len(all_pairs(FIELDS)),
            "failures": self.failures,
            "seed": seed,
            "seconds": round(seconds),
        }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--comparisons", type=int, default=10_000, metavar="N", help="how many (default: 10000)")
    made.add_argument("--kernels", type=int, metavar="N", help="specs whose kernels run (default: all)")
    made.add_argument("--seed", type=int, default=0, help="the same seed gives the same cases (default: 0)")
    made.add_argument("--out", type=Path, default=Path("soak"), metavar="DIR", help="folder to write (default: soak)")
    return made


def check_options(given: argparse.Namespace) -> None:
    """Refuses numbers that mean nothing.

    Raises:
        InputError: One is out of range.
    """
    ranges = {"comparisons": (1, 10**9), "kernels": (0, len(rows())), "seed": (0, 2**31)}
    for name, (low, high) in ranges.items():
        value = getattr(given, name)
        if value is not None and not low <= value <= high:
            allowed, hint = f"{low} to {high}", "python tools/soak.py --help lists the options"
            raise InputError(
                explain("a number is out of range", where=f"--{name}", value=value, allowed=allowed, hint=hint)
            )


def soak(given: argparse.Namespace) -> int:
    """Runs the comparisons; the exit status."""
    check_options(given)
    folder, progress, tally = failures_folder(given.out), Progress(), Tally()
    torch.set_num_threads(1)  # the cases are small
    for number, (check, case) in numbered(given.seed, given.kernels):
        failure = attempt(check, case)
        tally.done[check] += 1
        tally.specs.add(case.spec.slug)
        if check == "kernel_gradients":
            tally.built.add(case.spec.slug)
        if failure is not None:
            tally.failures += 1
            report(failure, folder)
        is_last = number == given.comparisons
        progress.say(f"{number} of {given.comparisons}, {tally.failures} wrong", always=is_last)
        if is_last:
            break
    summary = tally.to_json(given.seed, progress.seconds)
    (given.out / "soak.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(summary))
    return EXIT_FOUND if tally.failures else 0


def main(arguments: list[str] | None = None) -> int:
    """Reads the options and runs; the exit status."""
    given = parser().parse_args(arguments)
    try:
        return soak(given)
    except (KeyboardInterrupt, LlsaError, OSError) as error:
        return ended_by(error)


if __name__ == "__main__":
    sys.exit(main())
