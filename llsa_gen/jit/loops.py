# SPDX-License-Identifier: Apache-2.0
"""The loops that CPU kernels share, as macros of TVM's script: moving tiles, and products summed up in registers.

A matrix is a kernel's buffer of fp32 numbers unless it is said to be a view, which lies in memory and may be of a half
type.
"""

# mypy: disallow-untyped-defs=False

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from tvm.script import tirx as T

from llsa_gen.jit.lanes import bits_of, line_of, number, prefetch_line, strides_of, wide

RUN = 16
"""Most columns whose products follow each other without a jump, which saves 1 % of the time of attention (AVX2)."""

Epilogue: TypeAlias = Callable[[Any, Any], Any]
"""Says of a product and its row what is stored in its place, while it is in a register."""


def _log2(number: int) -> int:
    return number.bit_length() - 1


def _interleaved(halves: Any, turn: Any, i: Any, square: int, half: int) -> Any:
    """A half of the elements of two rows in turn; log2(square) rounds of it transpose a square."""
    rows = [halves[turn, i + part * (square // 2), T.ramp(0, 1, square)] for part in (0, 1)]
    return T.Shuffle(rows, [T.int32(half * square // 2 + k // 2 + k % 2 * square) for k in range(square)])


class Pace(NamedTuple):
    """A product over a depth cut into equal parts, with some rows to prefetch before each of them.

    Attributes:
        parts: How many.
        rows: Rows to prefetch before each.
        steps: Columns of each.
    """

    parts: int
    rows: int
    steps: int


def pace_of(rows: int, depth: int) -> Pace:
    """The most parts that share rows and depth evenly."""
    parts = math.gcd(rows, depth)
    return Pace(parts, rows // parts, depth // parts)


def run_of(steps: int) -> int:
    """The most columns, `RUN` at most, that divide the steps of a part."""
    return max(run for run in range(1, RUN + 1) if steps % run == 0)


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
def prefetch_row(view, row, columns):
    """Prefetches a row of a view that is read or written soon; one that does not exist is no error."""
    lying = T.decl_buffer(view.shape, bits_of(view), data=view.data, strides=view.strides)
    for line in T.unroll(-(-columns // line_of(view))):
        T.evaluate(prefetch_line(lying, row, line))


@T.inline
def no_prefetch(row):
    """What is needed next is near already."""
    T.evaluate(row)


def plain(product: Any, _row: Any) -> Any:
    """The epilogue that stores a product as it is."""
    return product


def affine(factor: Any, terms: Any, at: Any) -> Epilogue:
    """The epilogue that stores ``product * factor + terms[at + row]``."""

    def epilogue(product: Any, row: Any) -> Any:
        return product * factor + terms[at + row]

    return epilogue


@T.inline
def multiply_column(tile, moves, first, d, stays_t, sums, n):
    """Adds the products of column `d` of some rows to their register tile of a product."""
    for j in T.unroll(tile.rows):
        for c in T.unroll(tile.columns // tile.vector):
            for e in T.vectorized(tile.vector):
                sums[j, c * tile.vector + e] = (
                    sums[j, c * tile.vector + e]
                    + stays_t[d, n * tile.columns + c * tile.vector + e] * moves[first + j, d]
                )


@T.inline
def multiply(tile, moves, first, stays_t, depth, sums, epilogue, out, at, m, n, ahead):
    """Register tile (m, n) of a product.

    out[at + j, i] = epilogue(sum over d of moves[first + j, d] * stays_t[d, i], j)

    `moves` is a matrix, or a view in fp32. `ahead(j)` prefetches what is needed next, for every row j of the tile: in
    turn with the products, because a processor has about a dozen cache misses under way and stalls at the next one.
    """
    pace = T.meta_var(pace_of(tile.rows, depth))
    run = T.meta_var(run_of(pace.steps))
    clear(tile, sums)
    for part in T.serial(pace.parts):
        for row in T.unroll(pace.rows):
            ahead(m * tile.rows + part * pace.rows + row)
        for turn in T.serial(pace.steps // run):
            for d in T.unroll(run):
                multiply_column(
                    tile, moves, first + m * tile.rows, part * pace.steps + turn * run + d, stays_t, sums, n
                )
    for j in T.unroll(tile.rows):
        for c in T.unroll(tile.columns // tile.vector):
            for e in T.vectorized(tile.vector):
                out[at + m * tile.rows + j, n * tile.columns + c * tile.vector + e] = epilogue(
                    sums[j, c * tile.vector + e], m * tile.rows + j
                )


@T.inline
def multiply_strip(tile, moves, first, rows, stays_t, depth, columns, sums, epilogue, out, at, ahead):
    """The product of some rows with what stays, one register tile after the other."""
    for m in T.serial(rows // tile.rows):
        multiply(tile, moves, first, stays_t, depth, sums, epilogue, out, at, m, 0, ahead)
        for n in T.serial(columns // tile.columns - 1):
            multiply(tile, moves, first, stays_t, depth, sums, epilogue, out, at, m, n + 1, no_prefetch)


def lies_ready(view: Any, count: Any, rows: int, width: int) -> Any:
    """Whether rows of a view can be multiplied where they lie: all exist, in fp32, one behind the other.

    Other strides would take a register for every row, since a kernel learns them when it is called.
    """
    return view.dtype == "float32" and T.And(count >= rows, view.strides[0] == width)


@T.inline
def relate(tile, view, first, count, rows, stays_t, depth, columns, packed, sums, epilogue, out, at, ahead):
    """Products of rows of a view with what stays.

    out[at + j, i] = epilogue(sum over d of view[first + j, d] * stays_t[d, i], j) for j < count; later rows of `out`
    mean nothing. Rows that lie as they are needed are not packed.
    """
    if lies_ready(view, count, rows, depth):
        lying = T.decl_buffer(view.shape, "float32", data=view.data, strides=strides_of(*view.shape))
        multiply_strip(tile, lying, first, rows, stays_t, depth, columns, sums, epilogue, out, at, ahead)
    else:
        pack(view, first, count, rows, depth, packed, 0)
        multiply_strip(tile, packed, 0, rows, stays_t, depth, columns, sums, epilogue, out, at, ahead)


@T.inline
def accumulate_row(tile, weights_t, at, matrix, row, sums, m, n):
    """Adds a weighted row of a matrix, or of a view in fp32, to register tile (m, n)."""
    for i in T.unroll(tile.rows):
        for c in T.unroll(tile.columns // tile.vector):
            for e in T.vectorized(tile.vector):
                sums[i, c * tile.vector + e] = (
                    sums[i, c * tile.vector + e]
                    + weights_t[at, m * tile.rows + i] * matrix[row, n * tile.columns + c * tile.vector + e]
                )


@T.inline
def accumulate(tile, weights_t, at, matrix, first, count, rows, sums, m, n):
    """Adds up to `rows` weighted rows of a matrix, or of a view in fp32, to register tile (m, n).

    For j < min(count, rows), sums[i, d] += weights_t[at + j, i] * matrix[first + j, d]. Where no row is missing they
    follow each other without a jump, which saves 6 % of the time of attention (AVX2).
    """
    if count >= rows:
        for j in T.unroll(rows):
            accumulate_row(tile, weights_t, at + j, matrix, first + j, sums, m, n)
    else:
        for j in T.serial(count):
            accumulate_row(tile, weights_t, at + j, matrix, first + j, sums, m, n)


@T.inline
def flush(tile, sums, out, m, n):
    """Adds register tile (m, n) to its matrix."""
    for i in T.unroll(tile.rows):
        for c in T.unroll(tile.columns // tile.vector):
            for e in T.vectorized(tile.vector):
                out[m * tile.rows + i, n * tile.columns + c * tile.vector + e] = (
                    out[m * tile.rows + i, n * tile.columns + c * tile.vector + e] + sums[i, c * tile.vector + e]
                )


@T.inline
def store(tile, sums, out, m, n):
    """Writes register tile (m, n) to its matrix, over what was there."""
    for i in T.unroll(tile.rows):
        for c in T.unroll(tile.columns // tile.vector):
            for e in T.vectorized(tile.vector):
                out[m * tile.rows + i, n * tile.columns + c * tile.vector + e] = sums[i, c * tile.vector + e]
