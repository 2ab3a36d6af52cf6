#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures what a forward call costs on the host: everything but the kernels, which are replaced by empty ones.

    python tools/host_overhead.py [--heads 1] [--length 4096] [--calls 200] [--profile]

Prints microseconds per call, of the fastest and of the median round: the public function, the loaded op, the
registered op, and the op without what turns tensors into pointers.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import llsa_gen
from llsa_gen import jit
from llsa_gen.ops import execute
from llsa_gen.workloads import random_qkv

SLUG = "llsa_l2_b16_k8_d64_fp32"
ROUNDS = 15


def microseconds(call: Callable[[], object], calls: int) -> str:
    """The fastest round, which other programs disturb least, and the median one, per call."""
    call()
    rounds = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        for _ in range(calls):
            call()
        rounds.append((time.perf_counter() - started) / calls * 1e6)
    return f"{min(rounds):8.1f} us (median {statistics.median(rounds):.1f})"


def measured(op: Any, heads: int, length: int) -> dict[str, Callable[[], object]]:
    """What is timed, by name."""
    q, k, v = random_qkv(op.spec, 1, heads, length)
    registered = getattr(torch.ops.llsa_gen, op.name)
    return {
        "llsa_attention(q, k, v)": lambda: llsa_gen.llsa_attention(q, k, v),
        "op.attention(q, k, v)": lambda: op.attention(q, k, v),
        f"torch.ops.llsa_gen.{op.name}(q, k, v)": lambda: registered(q, k, v),
    }


def main() -> None:
    """Runs the measurement."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--heads", type=int, default=1, help="heads of a call (default: 1)")
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--calls", type=int, default=200, help="calls per round")
    parser.add_argument("--profile", action="store_true", help="show where the time of the op goes")
    chosen = parser.parse_args()
    op = llsa_gen.load(SLUG)
    calls = measured(op, chosen.heads, chosen.length)
    for call in calls.values():
        call()  # builds what is missing
    with torch.no_grad():
        jit.Kernel.__call__ = lambda self, *arguments: None  # type: ignore[method-assign]
        print(f"{SLUG}, {chosen.heads} heads, {chosen.length} tokens, {torch.get_num_threads()} threads, empty kernels")
        for name, call in calls.items():
            print(f"{microseconds(call, chosen.calls)}  {name}")
        execute.launch = lambda kernel, arguments: None  # type: ignore[attr-defined]
        print(f"{microseconds(calls['op.attention(q, k, v)'], chosen.calls)}  op.attention, without launches")
        if chosen.profile:
            _profile(calls["op.attention(q, k, v)"], chosen.calls)


def _profile(call: Callable[[], object], calls: int) -> None:
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(10 * calls):
        call()
    profile.disable()
    pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
