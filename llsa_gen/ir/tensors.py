# SPDX-License-Identifier: Apache-2.0
"""The tensor types that plans are made of, one constructor each."""

from __future__ import annotations

from collections.abc import Iterable

from llsa_gen.ir import names
from llsa_gen.ir.types import Axis, Role, TensorType


def operand_rows(operand: str, dtype: str) -> TensorType:
    """``q``, ``k`` or ``v`` of the caller."""
    return _rows(operand, operand, (0,), dtype, "input")


def pool(operand: str, level: int, dtype: str) -> TensorType:
    """The means of one level."""
    return _rows(names.pool(operand, level), operand, (level,), dtype, "temporary")


def pools(operand: str, levels: Iterable[int], dtype: str) -> TensorType:
    """The means of several levels, the finest first."""
    return _rows(names.pools(operand), operand, tuple(levels), dtype, "temporary")


def sums(operand: str, level: int) -> TensorType:
    """The fp32 sums of one level."""
    return _rows(names.sums(operand, level), operand, (level,), "fp32", "temporary")


def lists(level: int) -> TensorType:
    """The selected key nodes of one level, -1 where there are fewer."""
    axes = _axes("H", names.nodes(level, "q"), Axis("entry", f"K{level}"))
    return TensorType(names.lists(level), axes, "int32", "temporary", (level,))


def carry() -> tuple[TensorType, TensorType]:
    """Unfinished output and its log-sum-exp."""
    o, lse = names.CARRY
    return _attended(o, "fp32", "temporary"), _log_sum(lse, "temporary")


def results(dtype: str) -> tuple[TensorType, TensorType]:
    """Output and log-sum-exp."""
    o, lse = names.RESULTS
    return _attended(o, dtype, "output"), _log_sum(lse, "output")


def row_extent(levels: Iterable[int], side: str) -> str:
    """The extent of a row axis that holds levels one after the other."""
    return "+".join(names.nodes(level, side) for level in levels)


def _rows(name: str, operand: str, levels: tuple[int, ...], dtype: str, role: Role) -> TensorType:
    side = names.side(operand)
    heads = "H" if side == "q" else "Hk"
    axes = _axes(heads, row_extent(levels, side), Axis("feature", names.width(operand)))
    return TensorType(name, axes, dtype, role, levels)


def _attended(name: str, dtype: str, role: Role) -> TensorType:
    return TensorType(name, _axes("H", "Nq", Axis("feature", "Dv")), dtype, role, (0,))


def _log_sum(name: str, role: Role) -> TensorType:
    return TensorType(name, _axes("H", "Nq"), "fp32", role, (0,))


def _axes(heads: str, rows: str, *last: Axis) -> tuple[Axis, ...]:
    return (Axis("batch", "B"), Axis("head", heads), Axis("row", rows), *last)
