# SPDX-License-Identifier: Apache-2.0
"""Timing: CUDA events on a GPU, the wall clock on a CPU; alternatives in turn, medians with their spread."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Call = Callable[[], object]
CPU = "cpu"

SAMPLE_SECONDS = 4e-3
"""A sample repeats a short call to about this length, so that the host stays ahead of the GPU."""
MOST_REPEATS = 50
WARMUP_ROUNDS = 3
"""Rounds before the first sample on a GPU, which comes to its clocks meanwhile."""


@dataclass(frozen=True)
class Rounds:
    """How long to measure.

    Attributes:
        seconds: No round begins after this.
        count: Most samples of every call.
        least: Samples that there are nevertheless.
    """

    seconds: float = 60.0
    count: int = 40
    least: int = 1


def in_turns(calls: Mapping[str, Call], rounds: Rounds, device: str = CPU) -> dict[str, dict[str, float]]:
    """Times calls in turn, one sample of each per round, long ones once and short ones in a row.

    On a CPU a short call runs once untimed before each sample: others of the round took its place in the caches.

    Args:
        calls: What to time, by name.
        rounds: How long.
        device: ``"cpu"`` or ``"cuda"``.

    Returns:
        By name: median, 10th and 90th percentile and lowest seconds of one call, samples, and calls per sample.
    """
    end = time.monotonic() + rounds.seconds
    warmup = 0 if device == CPU else WARMUP_ROUNDS
    repeats = {name: _repeats(call, device) for name, call in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warmup + rounds.count):
        if turn >= warmup + rounds.least and time.monotonic() > end:
            break
        for name, call in calls.items():
            if device == CPU and repeats[name] > 1:
                call()
            seconds = sample(call, device, repeats[name])
            if turn >= warmup:
                samples[name].append(seconds)
    return {name: summary(found) | {"repeats": repeats[name]} for name, found in samples.items()}


def sample(call: Call, device: str, repeats: int) -> float:
    """Seconds of one call, averaged over some in a row."""
    if device == CPU:
        started = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - started) / repeats
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    before.record()
    for _ in range(repeats):
        call()
    after.record()
    after.synchronize()
    return float(before.elapsed_time(after)) * 1e-3 / repeats


def host_seconds(call: Call, device: str, count: int) -> float:
    """Median seconds until a call returns, while a GPU is still at work."""
    found = []
    for _ in range(count):
        synchronize(device)
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    synchronize(device)
    return statistics.median(found)


def synchronize(device: str) -> None:
    """Waits for the GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def summary(samples: Sequence[float]) -> dict[str, float]:
    """The numbers of a sample that are kept."""
    ranked = sorted(samples)
    tenth, ninetieth = (ranked[min(len(ranked) - 1, int(len(ranked) * part))] for part in (0.1, 0.9))
    return {
        "median": statistics.median(ranked),
        "p10": tenth,
        "p90": ninetieth,
        "lowest": ranked[0],
        "samples": len(ranked),
    }


def repeats_of(single: float) -> int:
    """How many calls of so many seconds make a sample."""
    return max(1, min(MOST_REPEATS, math.ceil(SAMPLE_SECONDS / max(single, 1e-6))))


def _repeats(call: Call, device: str) -> int:
    if device == CPU:
        return repeats_of(sample(call, device, 1))
    call()
    return repeats_of(sample(call, device, 3))
