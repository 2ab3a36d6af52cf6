# SPDX-License-Identifier: Apache-2.0
"""Run: a benchmark from its first length to its files, which are written anew after every length."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from llsa_gen.bench import files
from llsa_gen.bench.request import Request, check

Step = Callable[..., None]
"""``step(text, number=1, total=1)``."""


def run(request: Request, step: Step) -> dict[str, Any]:
    """Measures every length and writes the files.

    Args:
        request: What to measure.
        step: Called before every part of the work.

    Returns:
        What the JSON file holds: ``machine``, ``request``, ``points`` with their rows, ``summary`` and ``files``.

    Raises:
        InputError, OSError, ToolMissingError: As `check`.
    """
    check(request)
    from llsa_gen.bench import figure

    machine, points = circumstances(), list[dict[str, Any]]()
    table, document, picture = request.files()
    data: dict[str, Any] = {}
    for number, tokens in enumerate(request.tokens, 1):
        points.append(_measure(request, tokens, partial(step, number=number, total=len(request.tokens))))
        data = _data(request, machine, points)
        files.write_csv(table, [row for point in data["points"] for row in point["rows"]])
        files.write_json(document, data)
    step(f"drawing {picture}", len(request.tokens), len(request.tokens))
    rows = _rows(points)
    draw = figure.draw_attention if request.what == "attention" else figure.draw_transpose
    files.replace_file(picture, lambda half: draw(half, rows, data))
    return data


def circumstances() -> dict[str, Any]:
    """What the times of a report hold for, software and all; a tuning record holds for less, a `jit.Machine`."""
    import torch

    from llsa_gen.jit import toolchain
    from llsa_gen.jit.machine import processor

    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "software": asdict(toolchain.describe()),
    }


def _measure(request: Request, tokens: int, say: Callable[[str], None]) -> dict[str, Any]:
    from llsa_gen.bench.attention import measure_point
    from llsa_gen.bench.transpose import measure_transpose
    from llsa_gen.jit import architecture_of
    from llsa_gen.ops.engine import serving
    from llsa_gen.timing import CPU

    point = (measure_point if request.what == "attention" else measure_transpose)(request, tokens, say)
    kernels = serving(request.spec_at(tokens), CPU)
    return {**point, "isa": None if kernels is None else architecture_of(kernels)}


def _rows(points: Sequence[dict[str, Any]]) -> list[Any]:
    return [row for point in points for row in point["rows"]]


def _data(request: Request, machine: dict[str, Any], points: Sequence[dict[str, Any]]) -> dict[str, Any]:
    from llsa_gen.bench.summary import attention_summary, transpose_summary

    rows = _rows(points)
    return {
        "what": request.what,
        "machine": {**machine, "isa": ", ".join(sorted({str(point["isa"]) for point in points}))},
        "request": {
            "spec": request.spec.to_fields(),
            "tokens": list(request.tokens),
            "heads": request.heads,
            "seconds": request.seconds,
            "dense_limit": request.dense_limit,
        },
        "points": [{**point, "rows": [row.to_data() for row in point["rows"]]} for point in points],
        "summary": attention_summary(rows) if request.what == "attention" else transpose_summary(rows),
        "files": [str(path) for path in request.files()],
    }
