# SPDX-License-Identifier: Apache-2.0
"""Timing calls on a CPU in turn: long ones once per round, short ones often enough to be told from the clock."""

from __future__ import annotations

import time
from collections.abc import Mapping

from llsa_gen.evidence.timing import Call, repeats_of, sample, summary

CPU = "cpu"
MOST_ROUNDS = 40


def in_turns(calls: Mapping[str, Call], seconds: float, least: int = 1) -> dict[str, dict[str, float]]:
    """Times calls in turn, one sample of each per round.

    A short call runs once untimed before each sample: other calls of the round have taken its place in the caches.

    Args:
        calls: What to time, by name.
        seconds: No round begins after this.
        least: Rounds that there are nevertheless.

    Returns:
        By name: median, 10th and 90th percentile and lowest seconds of one call, samples, and calls per sample.
    """
    end = time.monotonic() + seconds
    repeats = {name: repeats_of(sample(call, CPU, 1)) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(MOST_ROUNDS):
        if turn >= least and time.monotonic() > end:
            break
        for name, call in calls.items():
            if repeats[name] > 1:
                call()
            samples[name].append(sample(call, CPU, repeats[name]))
    return {name: summary(found) | {"repeats": repeats[name]} for name, found in samples.items()}
