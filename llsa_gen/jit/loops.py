# SPDX-License-Identifier: Apache-2.0
"""The loops that CPU kernels share, as macros of TVM's script: moving tiles, and products summed up in registers.

A matrix is a kernel's buffer of fp32 numbers unless it is said to be a view, which lies in memory and may be of a half
type.
"""

# mypy: disallow-untyped-defs=False

from __future__ import annotations

from typing import Any

from tvm.script import tirx as T

from llsa_gen.jit.lanes import number, wide


def _log2(number: int) -> int:
    return number.bit_length() - 1


def _interleaved(halves: Any, turn: Any, i: Any, square: int, half: int) -> Any:
    """A half of the elements of two rows in turn; log2(square) rounds of it transpose a square."""
    rows = [halves[turn, i + part * (square // 2), T.ramp(0, 1, square)] for part in (0, 1)]
    return T.Shuffle(rows, [T.int32(half * square // 2 + k // 2 + k % 2 * square) for k in range(square)])


@T.inline
def fill(matrix, rows, columns):
    """Sets a matrix to 0."""
    for i in T.serial(rows):
        for d in T.vectorized(columns):
            matrix[i, d] = number(0.0)


@T.inline
def pack(view, first, count, rows, columns, packed, at):
    """Rows of a view side by side: packed[at + j, d] = view[first + j, d].

    The last of `count` rows stands in for those after it.
    """
    if count >= rows:
        for j in T.serial(rows):
            for d in T.vectorized(columns):
                packed[at + j, d] = wide(view[first + j, d])
    else:
        for j in T.serial(rows):
            for d in T.vectorized(columns):
                packed[at + j, d] = wide(view[first + T.min(j, count - 1), d])


@T.inline
def transpose(view, first, last, rows, columns, square, out_t):
    """Rows of a view as columns: out_t[d, i] = view[min(first + i, last), d], square by square."""
    halves = T.alloc_buffer((2, square, square), "float32", scope="local")
    for m in T.serial(rows // square):
        for n in T.serial(columns // square):
            for i in T.unroll(square):
                for e in T.vectorized(square):
                    halves[0, i, e] = wide(view[T.min(first + m * square + i, last), n * square + e])
            for turn in T.unroll(_log2(square)):
                for i in T.unroll(square // 2):
                    halves[(turn + 1) % 2, 2 * i, T.ramp(0, 1, square)] = _interleaved(halves, turn % 2, i, square, 0)
                    halves[(turn + 1) % 2, 2 * i + 1, T.ramp(0, 1, square)] = _interleaved(
                        halves, turn % 2, i, square, 1
                    )
            for i in T.unroll(square):
                for e in T.vectorized(square):
                    out_t[n * square + i, m * square + e] = halves[_log2(square) % 2, i, e]


@T.inline
def clear(tile, sums):
    """Sets the sums of a register tile to 0."""
    for i in T.unroll(tile.rows):
        for c in T.unroll(tile.columns // tile.vector):
            for e in T.vectorized(tile.vector):
                sums[i, c * tile.vector + e] = number(0.0)


@T.inline
def multiply(tile, moves, stays_t, depth, sums, out, at, m, n):
    """Register tile (m, n) of a product: out[at + j, i] = sum over d of moves[j, d] * stays_t[d, i]."""
    clear(tile, sums)
    for d in T.serial(depth):
        for j in T.unroll(tile.rows):
            for c in T.unroll(tile.columns // tile.vector):
                for e in T.vectorized(tile.vector):
                    sums[j, c * tile.vector + e] = (
                        sums[j, c * tile.vector + e]
                        + stays_t[d, n * tile.columns + c * tile.vector + e] * moves[m * tile.rows + j, d]
                    )
    for j in T.unroll(tile.rows):
        for c in T.unroll(tile.columns // tile.vector):
            for e in T.vectorized(tile.vector):
                out[at + m * tile.rows + j, n * tile.columns + c * tile.vector + e] = sums[j, c * tile.vector + e]


@T.inline
def accumulate(tile, weights_t, at, matrix, first, count, sums, m, n):
    """Adds weighted rows of a matrix, or of a view in fp32, to register tile (m, n).

    For j < count, sums[i, d] += weights_t[at + j, i] * matrix[first + j, d].
    """
    for j in T.serial(count):
        for i in T.unroll(tile.rows):
            for c in T.unroll(tile.columns // tile.vector):
                for e in T.vectorized(tile.vector):
                    sums[i, c * tile.vector + e] = (
                        sums[i, c * tile.vector + e]
                        + weights_t[at + j, m * tile.rows + i]
                        * matrix[first + j, n * tile.columns + c * tile.vector + e]
                    )


@T.inline
def flush(tile, sums, out, m, n):
    """Adds register tile (m, n) to its matrix."""
    for i in T.unroll(tile.rows):
        for c in T.unroll(tile.columns // tile.vector):
            for e in T.vectorized(tile.vector):
                out[m * tile.rows + i, n * tile.columns + c * tile.vector + e] = (
                    out[m * tile.rows + i, n * tile.columns + c * tile.vector + e] + sums[i, c * tile.vector + e]
                )
