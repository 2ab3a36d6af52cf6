# SPDX-License-Identifier: Apache-2.0
"""The cases of a soak: specs and inputs in which every two values of every two fields meet."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count, cycle, product
from types import MappingProxyType
from typing import Any

from llsa_gen.spec import Spec
from tests.strategies import ENRICHMENTS, WEIGHTS
from tools.campaign.cases import INPUTS, LISTS, Case
from tools.campaign.pairs import Row, covering

Turn = tuple[str, Case]
"""A check by name, and the case it is run on."""

BY_LEVEL = "by level"
"""Another K on every level."""

LENGTHS: Mapping[str, Callable[[random.Random, int], int]] = MappingProxyType(
    {
        "one token": lambda chance, block: 1,
        "less than a block": lambda chance, block: chance.randint(2, block - 1),
        "whole blocks": lambda chance, block: block * chance.randint(1, max(1, 160 // block)),
        "one token more": lambda chance, block: block * chance.randint(1, max(1, 160 // block)) + 1,
        "anything": lambda chance, block: chance.randint(block + 2, 240),
    }
)
"""Classes of lengths."""

FIELDS: Mapping[str, Sequence[Any]] = MappingProxyType(
    {
        "levels": (1, 2, 3, 4),
        "block": (4, 8, 16, 64),
        "topk": (1, 3, 8, 32, BY_LEVEL),
        "head_dim": (16, 40, 64),
        "value_dim": (16, 24, 64),
        "dtype": ("fp32", "fp16", "bf16"),
        "enrichment": ENRICHMENTS,
        "weight": WEIGHTS,
        "length": tuple(LENGTHS),
        "inputs": INPUTS,
        "lists": LISTS,
    }
)
"""What is varied, and the values that meet in pairs."""

SPEC_FIELDS = ("levels", "block", "head_dim", "value_dim", "dtype", "enrichment", "weight")
PLAN_CHECKS = ("plan_gradients_fp64", "plan_gradients_fp32")
KERNEL_TURNS = 8
"""One comparison in so many is of kernels."""


def spec_of(row: Row) -> Spec:
    """The spec of a row."""
    fields = {name: row[name] for name in SPEC_FIELDS}
    topk = tuple(range(1, row["levels"] + 1))[::-1] if row["topk"] == BY_LEVEL else row["topk"]
    return Spec(**fields, topk=topk)


def case_of(row: Row, spec: Spec, seed: int) -> Case:
    """A case of a row; the seed decides the length within its class, and the numbers."""
    chance = random.Random(seed)  # noqa: S311  (no secret)
    return Case(
        spec=spec,
        batch=1,
        heads=chance.choice((1, 1, 2)),
        length=LENGTHS[row["length"]](chance, spec.block),
        inputs=row["inputs"],
        lists=row["lists"],
        seed=seed,
        scale=chance.choice((0.25, 0.1, 1.0)),
    )


def rows() -> list[tuple[Row, Spec]]:
    """The rows in which all pairs of values meet, with their specs."""
    return [(row, spec_of(row)) for row in covering(FIELDS)]


def turns(seed: int = 0, kernels: int | None = None) -> Iterator[Turn]:
    """Endless comparisons: all rows with every check of plans, again and again with new numbers, and some of kernels.

    Args:
        seed: The same seed gives the same turns.
        kernels: How many rows the kernels are run on too; all of them when not given.
    """
    all_rows = rows()
    with_kernels = cycle(all_rows[:kernels])
    for number, (check, (row, spec)) in enumerate(cycle(product(PLAN_CHECKS, all_rows))):
        yield check, case_of(row, spec, seed + number)
        if kernels != 0 and number % (KERNEL_TURNS - 1) == KERNEL_TURNS - 2:
            yield "kernel_gradients", case_of(*next(with_kernels), seed + number)


def numbered(seed: int, kernels: int | None = None) -> Iterator[tuple[int, Turn]]:
    """The turns with their numbers, from 1."""
    return zip(count(1), turns(seed, kernels), strict=False)
