# SPDX-License-Identifier: Apache-2.0
"""Resolve depth: the number of levels with the fewest flops at a sequence length."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from llsa_gen.errors import SpecError, explain
from llsa_gen.ir.sizes import IntSizes
from llsa_gen.lowering.build import build
from llsa_gen.spec.fields import MAX_LEVELS

if TYPE_CHECKING:
    from llsa_gen.spec import Spec

DEPTHS = range(1, MAX_LEVELS + 1)
"""The depths that a spec may have."""


@dataclass(frozen=True, slots=True)
class DepthRow:
    """Flops of one depth for one batch and head; pooling is left out, it is nearly equal for all depths.

    Attributes:
        levels: The depth.
        selection: Flops of all selections.
        attention: Flops of attention.
    """

    levels: int
    selection: int
    attention: int

    @property
    def total(self) -> int:
        """Selection and attention together."""
        return self.selection + self.attention


@dataclass(frozen=True, slots=True)
class DepthChoice:
    """The depth of choice and what it was chosen from.

    Attributes:
        levels: The depth with the fewest flops, the smallest of equals.
        rows: One row per possible depth, ascending.
    """

    levels: int
    rows: tuple[DepthRow, ...]


def resolve_depth(spec: Spec) -> Spec:
    """The spec itself, or with ``levels="auto"`` the same with the depth of choice for its ``seq_len``.

    Raises:
        SpecError: No depth is possible.
    """
    if not spec.is_auto:
        return spec
    assert spec.seq_len is not None
    return spec.with_depth(choose_depth(spec, spec.seq_len).levels)


@lru_cache(maxsize=4096)
def choose_depth(spec: Spec, seq_len: int) -> DepthChoice:
    """The depth with the fewest flops of selection and attention; ties go to fewer levels.

    Args:
        spec: Its own depth does not matter. Depths at which its expressions are out of bounds are not considered.
        seq_len: Number of queries and of keys.

    Raises:
        SpecError: The spec is out of bounds at every depth.
    """
    rows: list[DepthRow] = []
    refused: list[SpecError] = []
    for levels in DEPTHS:
        try:
            rows.append(_row(spec.with_depth(levels), seq_len))
        except SpecError as error:
            refused.append(error)
    if not rows:
        what = f"the spec is out of bounds at every depth from {DEPTHS[0]} to {DEPTHS[-1]}"
        reason = str(refused[0]).splitlines()[0]
        allowed = "fields within their bounds at one depth at least"
        hint = f"mend what levels={DEPTHS[0]} says: {reason}"
        raise SpecError(
            explain(what, where="field levels", value=spec.levels, allowed=allowed, hint=hint)
        ) from refused[0]
    best = min(rows, key=lambda row: (row.total, row.levels))
    return DepthChoice(best.levels, tuple(rows))


def _row(spec: Spec, seq_len: int) -> DepthRow:
    plan = build(spec)
    sizes = IntSizes.square(spec, seq_len)
    selection = sum(stage.flops(sizes) for stage in plan.of_kind("select"))
    attention = sum(stage.flops(sizes) for stage in plan.of_kind("attend"))
    return DepthRow(spec.depth, selection, attention)
