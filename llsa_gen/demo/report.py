# SPDX-License-Identifier: Apache-2.0
"""Report: what the demo measured, as frozen data, as JSON-able data and as text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class HeadReport:
    """How well LLSA approximates dense attention in one head, over the sampled rows.

    Attributes:
        name: What the head looks at.
        max_error: Largest absolute difference of an output entry.
        relative_error: Euclidean norm of the difference over that of the dense output.
        dense_mass: Share of the dense attention that falls on what LLSA resolves at each level and no finer, index 0 =
            single tokens, last = only the coarsest nodes; sums to one.
    """

    name: str
    max_error: float
    relative_error: float
    dense_mass: tuple[float, ...]


@dataclass(frozen=True)
class DemoReport:
    """Everything that one run of the demo measured.

    Attributes:
        path: The picture.
        size: Side of the photograph in pixels.
        tokens: Tokens of the sequence, one per pixel.
        block_size: Tokens per block.
        topk: Nodes kept per level.
        num_levels: Depth of the hierarchy.
        head_dim: Width of q, k and v.
        keys_per_query: Keys that one query attends.
        sampled_rows: Query rows compared with dense attention.
        threads: Threads torch was allowed.
        llsa_seconds: Median time of one ``llsa_attention`` call over all rows, pools and selection included.
        select_seconds: Median time of one ``llsa_select`` call.
        dense_seconds: Median time of ``scaled_dot_product_attention`` over all rows.
        dense_rows: Query rows that the dense time was measured on; fewer than `tokens` means it was scaled up.
        heads: One entry per head.
    """

    path: Path
    size: int
    tokens: int
    block_size: int
    topk: int
    num_levels: int
    head_dim: int
    keys_per_query: int
    sampled_rows: int
    threads: int
    llsa_seconds: float
    select_seconds: float
    dense_seconds: float
    dense_rows: int
    heads: tuple[HeadReport, ...]

    @property
    def dense_is_scaled(self) -> bool:
        """Whether the dense time was extrapolated from some of the rows."""
        return self.dense_rows < self.tokens

    @property
    def speedup(self) -> float:
        """Dense time over LLSA time."""
        return self.dense_seconds / self.llsa_seconds

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-able data."""
        data = asdict(self)
        data["path"] = str(self.path)
        data["heads"] = [{**head, "dense_mass": list(head["dense_mass"])} for head in data["heads"]]
        return {**data, "dense_is_scaled": self.dense_is_scaled, "speedup": self.speedup}


def render_report(report: DemoReport) -> str:
    """A report as text of one screen."""
    lines = [
        f"{report.tokens:,} pixels of a {report.size}×{report.size} photograph as tokens, {len(report.heads)} heads, "
        f"D={report.head_dim}, fp32, CPU ({report.threads} threads)",
        f"LLSA: block {report.block_size}, top {report.topk}, {report.num_levels} levels; each query attends "
        f"{report.keys_per_query:,} keys instead of {report.tokens:,}",
        "",
        *_times(report),
        "",
        *_accuracy(report),
        "",
        f"picture: {report.path}",
    ]
    return "\n".join(lines)


def _times(report: DemoReport) -> list[str]:
    how = "all rows measured"
    if report.dense_is_scaled:
        factor = report.tokens / report.dense_rows
        how = f"ESTIMATE: {report.dense_rows:,} query rows against all keys measured, times {factor:g}"
    return [
        "time (medians of one run, interleaved, first calls left out)",
        f"  LLSA               {_seconds(report.llsa_seconds)}   pools and selection included; "
        f"selection alone {_seconds(report.select_seconds).strip()}",
        f"  dense SDPA         {_seconds(report.dense_seconds)}   {how}",
        f"  ratio              {report.speedup:8.1f} ×",
    ]


def _accuracy(report: DemoReport) -> list[str]:
    shares = ["tokens", *(f"level {level}" for level in range(1, report.num_levels + 1))]
    columns = "".join(f"{share:>10}" for share in shares)
    lines = [
        f"LLSA as an approximation of exact dense attention, {report.sampled_rows} sampled rows. On the right,",
        "where the dense attention lies: on tokens read one by one, or only in nodes of a level, read as a mean",
        f"  {'head':<16} {'max error':>10} {'rel. error':>11} {columns}",
    ]
    for head in report.heads:
        mass = "".join(f"{share:>10.1%}" for share in head.dense_mass)
        lines.append(f"  {head.name:<16} {head.max_error:>10.2e} {head.relative_error:>11.2%} {mass}")
    return lines


def _seconds(seconds: float) -> str:
    return f"{seconds:8.2f} s " if seconds >= 1 else f"{seconds * 1e3:8.1f} ms"
