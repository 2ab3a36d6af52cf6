# SPDX-License-Identifier: Apache-2.0
"""What matrix instructions ask of tile sizes."""

from __future__ import annotations

MATRIX_ROWS = 16
"""Rows of the smallest tensor-core product; tiles of fewer rows are padded to it."""


def padded(width: int) -> int:
    """A width rounded up to what a matrix instruction takes."""
    return -(-width // MATRIX_ROWS) * MATRIX_ROWS


def padded_to_power(width: int) -> int:
    """A width rounded up to a power of two of at least `MATRIX_ROWS`, which rows are reduced over."""
    return max(MATRIX_ROWS, 1 << (width - 1).bit_length())


def kept_tile(topk: int) -> int:
    """Columns of the running best of the selection: a power of two of at least 8."""
    return max(8, 1 << (topk - 1).bit_length())
