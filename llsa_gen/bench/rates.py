# SPDX-License-Identifier: Apache-2.0
"""The rates of the machine: a matrix product and a copy, timed in turn with what is compared with them."""

from __future__ import annotations

from functools import lru_cache, partial

import torch

from llsa_gen.bench.rows import Times
from llsa_gen.bench.statistics import Rates
from llsa_gen.timing import Call

SIDE = 1536
"""Side of the matrices: large enough for the full rate, 50 ms of two cores."""
COPIED = 1 << 28
"""Bytes of the copied tensor: more than any cache holds."""

MATMUL, COPY = "matmul", "copy"


@lru_cache(maxsize=1)
def calls() -> dict[str, Call]:
    """An fp32 product, which is what kernels of CPUs compute for every dtype, and a copy."""
    with torch.inference_mode(mode=False):  # a tensor made in inference mode cannot be written to outside of it
        generator = torch.Generator().manual_seed(0)
        left, right = (torch.randn(SIDE, SIDE, generator=generator) for _ in range(2))
        product = torch.empty(SIDE, SIDE)
        source, target = (torch.zeros(COPIED // 4) for _ in range(2))
    return {MATMUL: partial(torch.mm, left, right, out=product), COPY: partial(target.copy_, source)}


def rates_of(times: Times) -> Rates:
    """The rates behind the medians of the two calls."""
    return Rates(2 * SIDE**3 / times[MATMUL]["median"], 2 * COPIED / times[COPY]["median"])
