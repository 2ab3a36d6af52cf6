# SPDX-License-Identifier: Apache-2.0
"""What matrix instructions ask of tile sizes."""

from __future__ import annotations

MATRIX_ROWS = 16
"""Rows of the smallest tensor-core product, and of a warp's share of one; tiles of fewer rows are padded to it."""
MATRIX_COLUMNS = 8
"""Columns of the smallest share that a warp can have of a product."""
GROUP_WARPS = 4
"""Warps that multiply together with warp-group instructions; they divide the rows, so a tile needs 64 of them."""
WIDE = 96
"""Widths beyond which sums of a tile of 16 rows fill the registers of two warps, and must be divided by four."""
TILE_ALIGNMENT = 1024
"""Bytes at whose multiples TileLang lets the shared tiles of warp-group products begin."""
SWIZZLE_BYTES = 64
"""Bytes of a tile's row in multiples of which operands lie at addresses that differ in few bits."""
COPY_BYTES = 16
"""Bytes of the widest asynchronous copy of a thread."""


def tile_widths(head_dim: int, value_dim: int) -> tuple[int, int]:
    """Columns of a tile of keys and of a tile of values, rounded up to what a matrix instruction takes.

    Where one is large, both are rounded up to what four warps can share, see `WIDE`.
    """
    step = MATRIX_ROWS if max(head_dim, value_dim) <= WIDE else MATRIX_COLUMNS * GROUP_WARPS
    return -(-head_dim // step) * step, -(-value_dim // step) * step


def padded_to_power(width: int) -> int:
    """A width rounded up to a power of two of at least `MATRIX_ROWS`, which rows are reduced over."""
    return max(MATRIX_ROWS, 1 << (width - 1).bit_length())


def kept_tile(topk: int) -> int:
    """Columns of the running best of the selection: a power of two of at least 8."""
    return max(8, 1 << (topk - 1).bit_length())


def share(rows: int, columns: int, warps: int, *, grouped: bool) -> int:
    """Most columns of a product that one warp has when all divide it evenly, each with whole matrix instructions.

    Args:
        rows: Rows of the product.
        columns: Its columns.
        warps: Warps of a block, all of which take part.
        grouped: Whether they multiply in groups of `GROUP_WARPS`.

    Returns:
        The columns, or 0 where the warps cannot divide it.
    """
    return max((columns // n for n in _across(rows, columns, warps, grouped=grouped)), default=0)


def warps_across(rows: int, columns: int, warps: int, *, grouped: bool) -> int:
    """The most warps that can lie side by side over the columns of a product; 0 where they cannot divide it."""
    return max(_across(rows, columns, warps, grouped=grouped), default=0)


def _across(rows: int, columns: int, warps: int, *, grouped: bool) -> list[int]:
    """How many warps may lie side by side, the others of a block lying below them."""
    step = GROUP_WARPS if grouped else 1
    downs = (down for down in range(step, warps + 1, step) if warps % down == 0 and rows % (MATRIX_ROWS * down) == 0)
    return [n for n in (warps // down for down in downs) if columns % (MATRIX_COLUMNS * n) == 0]
