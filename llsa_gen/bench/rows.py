# SPDX-License-Identifier: Apache-2.0
"""Rows of a result: one time with its spread, and what it is to be compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from llsa_gen.bench.statistics import Rates

Times = Mapping[str, Mapping[str, float]]
"""What `in_turns` returns."""

FORWARD = "forward"
TRAINING = "forward+backward"


@dataclass(frozen=True)
class Row:
    """One thing that was timed at one length.

    Attributes:
        tokens: The length.
        levels: Depth of the hierarchy there.
        part: ``forward``, ``forward+backward``, or the stages of a direction.
        name: ``llsa``, ``sdpa``, ``flex`` or a stage.
        seconds: Median of one call; of an extrapolated row, the median times `factor`.
        p10: 10th percentile, times `factor`.
        p90: 90th percentile, times `factor`.
        lowest: The shortest, times `factor`.
        samples: How often it was timed.
        factor: 1, or all query rows over the measured ones.
        flops: Floating-point operations in the model.
        moved: Compulsory bytes in the model, read and written; None where there is no model of them.
        predicted: Seconds by the model at the rates measured in the same rounds; None likewise.
        rates: Those rates.
    """

    tokens: int
    levels: int
    part: str
    name: str
    seconds: float
    p10: float
    p90: float
    lowest: float
    samples: int
    factor: float
    flops: int
    moved: int | None
    predicted: float | None
    rates: Rates

    @property
    def matmul_share(self) -> float:
        """Its rate of flops over that of a matrix product."""
        return self.flops / self.seconds / self.rates.matmul

    @property
    def copy_share(self) -> float | None:
        """Its rate of compulsory bytes over that of a copy."""
        return None if self.moved is None else self.moved / self.seconds / self.rates.copy

    def to_data(self) -> dict[str, Any]:
        """All of it as plain data, a value each, in one order."""
        data = asdict(self)
        del data["rates"]
        return data | {
            "gflop_per_second": self.flops / self.seconds / 1e9,
            "matmul_gflop_per_second": self.rates.matmul / 1e9,
            "matmul_share": self.matmul_share,
            "copy_gbyte_per_second": self.rates.copy / 1e9,
            "copy_share": self.copy_share,
        }


@dataclass(frozen=True)
class Work:
    """What the model says of one thing that is timed.

    Attributes:
        flops: Floating-point operations.
        stages: Flops and compulsory bytes of each of its stages; none where there is no model of them.
    """

    flops: int
    stages: tuple[tuple[int, int], ...] = ()

    @property
    def moved(self) -> int | None:
        """Compulsory bytes of all stages."""
        return sum(moved for _, moved in self.stages) if self.stages else None

    def predicted(self, rates: Rates) -> float | None:
        """The stages one after the other, each as fast as the slower of its two rates lets it be."""
        return sum(rates.seconds(*stage) for stage in self.stages) if self.stages else None


def row(
    tokens: int, levels: int, part: str, name: str, found: Mapping[str, float], work: Work, rates: Rates, factor: float
) -> Row:
    """A row of a timed call."""
    return Row(
        tokens=tokens,
        levels=levels,
        part=part,
        name=name,
        seconds=found["median"] * factor,
        p10=found["p10"] * factor,
        p90=found["p90"] * factor,
        lowest=found["lowest"] * factor,
        samples=int(found["samples"]),
        factor=factor,
        flops=work.flops,
        moved=work.moved,
        predicted=work.predicted(rates),
        rates=rates,
    )
