#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures what a forward call without gradient costs on the host: everything but what kernels compute.

    python tools/host_overhead.py [--heads 1] [--length 4096] [--calls 200] [--profile]

Every kernel is replaced by a C function of the same arguments that returns at once, so allocations and the call into C
are part of the figures. Prints microseconds per call, of the fastest and of the median round: the public function, the
loaded op, the registered op, and the op without its call into C.
"""

from __future__ import annotations

import argparse
import cProfile
import ctypes
import importlib
import pstats
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import llsa_gen
from llsa_gen import jit
from llsa_gen.jit.tasks import SEQUENCE
from llsa_gen.jit.toolchain import require_cxx
from llsa_gen.ops.calls import forget_passes
from llsa_gen.workloads import random_qkv

SLUG = "llsa_l2_b16_k8_d64_fp32"
ROUNDS = 31
EMPTY = """
#include <cstdint>
extern "C" void call(int32_t, const void*, char* const*) {}
"""


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


def empty_kernels(folder: Path) -> None:
    """Lets every kernel that is loaded from now on do nothing."""
    source, library = folder / "empty.cpp", folder / "empty.so"
    source.write_text(EMPTY + SEQUENCE, encoding="utf-8")
    subprocess.run([require_cxx().path, "-shared", "-fPIC", "-O2", "-o", library, source], check=True)  # noqa: S603
    load: Any = importlib.import_module("llsa_gen.jit.load")
    load._open = lambda _: ctypes.CDLL(str(library))  # noqa: SLF001
    load._load.cache_clear()  # noqa: SLF001
    forget_passes()


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
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        empty_kernels(Path(folder))
        print(f"{SLUG}, {chosen.heads} heads, {chosen.length} tokens, {torch.get_num_threads()} threads, empty kernels")
        for name, call in calls.items():
            print(f"{microseconds(call, chosen.calls)}  {name}")
        if chosen.profile:
            _profile(calls["op.attention(q, k, v)"], chosen.calls)
        jit.Kernel.run_all = lambda self, *arguments: None  # type: ignore[method-assign]
        print(f"{microseconds(calls['op.attention(q, k, v)'], chosen.calls)}  op.attention, without the call into C")


def _profile(call: Callable[[], object], calls: int) -> None:
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(10 * calls):
        call()
    profile.disable()
    pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
