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


def output_and_gradients(dtype: str) -> tuple[TensorType, ...]:
    """What a backward pass gets of the forward pass: o, lse and their gradients."""
    wide = (_log_sum(name, "input") for name in ("lse", "lse_grad"))
    rows = (_attended(name, dtype, "input") for name in ("o", "o_grad"))
    o, o_grad, lse, lse_grad = *rows, *wide
    return o, lse, o_grad, lse_grad


def delta() -> TensorType:
    """The part of the logits' gradients that all keys of a query share."""
    return _log_sum(names.DELTA, "temporary")


def q_grad_carry() -> TensorType:
    """The gradient of q so far."""
    return TensorType(names.Q_GRAD_CARRY, _axes("H", "Nq", Axis("feature", "D")), "fp32", "temporary", (0,))


def gradient(operand: str, level: int, dtype: str) -> TensorType:
    """The gradient of the rows of one level: returned for tokens, fp32 above."""
    role: Role = "temporary" if level else "output"
    return _rows(names.gradient(operand, level), operand, (level,), "fp32" if level else dtype, role)


def counts(level: int) -> TensorType:
    """Entries by chunk of rows and by node."""
    return _table(names.counts(level), level, names.nodes(level, "k"), Axis("chunk", str(CHUNKS)))


def offsets(level: int) -> TensorType:
    """Bounds of the inverted lists."""
    return _table(names.offsets(level), level, f"{names.nodes(level, 'k')}+1")


def inverted(level: int) -> TensorType:
    """The entries of the inverted lists, -1 behind the last."""
    return _table(names.rows(level), level, names.nodes(level, "q"), Axis("entry", f"K{level}"))


def part_offsets(level: int) -> TensorType:
    """Bounds of the parts of long inverted lists."""
    return _table(names.part_offsets(level), level, f"{names.nodes(level, 'k')}+1")


def part_nodes(level: int) -> TensorType:
    """The nodes of the parts."""
    return _table(names.part_nodes(level), level, f"P{level}")


def parts(operand: str, level: int, extents: tuple[str, str]) -> TensorType:
    """Partial gradients: so many parts of so many rows each."""
    rows, within = extents
    axes = _axes("Hk", rows, Axis("row", within), Axis("feature", names.width(operand)))
    return TensorType(names.parts(operand, level), axes, "fp32", "temporary", (level,))


CHUNKS = 32
"""Chunks of rows that are counted side by side when lists are inverted."""


def row_extent(levels: Iterable[int], side: str) -> str:
    """The extent of a row axis that holds levels one after the other."""
    return "+".join(names.nodes(level, side) for level in levels)


def _rows(name: str, operand: str, levels: tuple[int, ...], dtype: str, role: Role) -> TensorType:
    side = names.side(operand)
    heads = "H" if side == "q" else "Hk"
    axes = _axes(heads, row_extent(levels, side), Axis("feature", names.width(operand)))
    return TensorType(name, axes, dtype, role, levels)


def _table(name: str, level: int, rows: str, *last: Axis) -> TensorType:
    return TensorType(name, _axes("H", rows, *last), "int32", "temporary", (level,))


def _attended(name: str, dtype: str, role: Role) -> TensorType:
    return TensorType(name, _axes("H", "Nq", Axis("feature", "Dv")), dtype, role, (0,))


def _log_sum(name: str, role: Role) -> TensorType:
    return TensorType(name, _axes("H", "Nq"), "fp32", role, (0,))


def _axes(heads: str, rows: str, *last: Axis) -> tuple[Axis, ...]:
    return (Axis("batch", "B"), Axis("head", heads), Axis("row", rows), *last)
