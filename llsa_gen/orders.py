# SPDX-License-Identifier: Apache-2.0
"""Orders in which the cells of an image or a video become tokens.

Attention over blocks of consecutive tokens wants neighbours in space to be neighbours in the sequence. Every order is a
permutation ``order`` with ``order[position] = cell``, where cells are numbered in raster order (last axis fastest):
``x[order]`` brings raster data into the order, ``y[inverse(order)]`` brings it back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llsa_gen.errors import InputError, InputTypeError, explain

if TYPE_CHECKING:
    from torch import LongTensor, Tensor

MAX_CELLS = 2**31
"""Most cells of a grid."""

_DIGITS_PER_KEY = 20
"""Digits of three bits that one 64-bit key holds."""


def raster(shape: Sequence[int]) -> LongTensor:
    """The order that leaves cells as they are stored: columns fastest, then rows, then frames.

    Args:
        shape: Lengths of the grid's axes, for example ``(H, W)`` or ``(T, H, W)``.

    Raises:
        InputError: The shape is not one to three positive lengths, or too large.
    """
    import torch

    _check_shape(shape)
    return torch.arange(math.prod(shape))  # type: ignore[return-value]


def morton(shape: Sequence[int]) -> LongTensor:
    """The Morton order (Z-order): cells sorted by their interleaved coordinate bits, the column bit least significant.

    On a 2-D grid of powers of two every ``4**m`` aligned consecutive tokens are a patch of ``2**m`` by ``2**m`` cells,
    on a 3-D grid every ``8**m`` a cube, as long as no axis is shorter than that. Lengths that are not powers of two
    walk the same curve and leave out the cells that do not exist.

    Args:
        shape: Lengths of the grid's axes, for example ``(H, W)`` or ``(T, H, W)``.

    Returns:
        Raster numbers of the cells, int64 [prod(shape)].

    Raises:
        InputError: The shape is not one to three positive lengths, or too large.
    """
    _check_shape(shape)
    return _sorted_by_digits(_digits(_coordinates(shape), _bits(shape)))


def tiles(shape: Sequence[int], tile: int | Sequence[int]) -> LongTensor:
    """The tiled order: tiles one after the other in raster order, the cells of each in raster order too.

    Every tile is a run of consecutive tokens. Where a length is no multiple of the tile's, the last tiles are smaller.

    Args:
        shape: Lengths of the grid's axes, for example ``(H, W)`` or ``(T, H, W)``.
        tile: Lengths of a tile, one for each axis, or one number for all of them.

    Returns:
        Raster numbers of the cells, int64 [prod(shape)].

    Raises:
        InputError: The shape is not one to three positive lengths, or too large, or the tile does not fit to it.
    """
    import torch

    _check_shape(shape)
    lengths = _check_tile(tile, len(shape))
    outer, inner = torch.zeros((), dtype=torch.int64), torch.zeros((), dtype=torch.int64)
    for line, length, side in zip(_coordinates(shape), shape, lengths, strict=True):
        outer = outer * -(-length // side) + line // side
        inner = inner * min(side, length) + line % side
    return (outer * (int(inner.max()) + 1) + inner).flatten().argsort()  # type: ignore[return-value]


def hilbert(shape: Sequence[int]) -> LongTensor:
    """The Hilbert order: cells along the Hilbert curve, which begins at cell 0.

    On a square or cube whose side is a power of two, consecutive tokens are neighbours in space, and every ``4**m``
    aligned consecutive tokens are a patch of ``2**m`` by ``2**m`` cells (``8**m`` a cube). Other grids walk the curve
    of the smallest such square or cube around them and leave out the cells that do not exist, so that a few
    consecutive tokens are apart. Axes of length 1 do not count.

    The curve is Skilling's ("Programming the Hilbert curve", 2004), which needs no tables in any dimension.

    Args:
        shape: Lengths of the grid's axes, for example ``(H, W)`` or ``(T, H, W)``.

    Returns:
        Raster numbers of the cells, int64 [prod(shape)].

    Raises:
        InputError: The shape is not one to three positive lengths, or too large.
    """
    _check_shape(shape)
    long = [length for length in shape if length > 1]
    if len(long) < 2:
        return raster(shape)
    bits = _bits(long)
    return _sorted_by_digits(_digits(_unfolded(_coordinates(long), bits), bits))


def inverse(order: Tensor) -> LongTensor:
    """The permutation that undoes ``order``: ``inverse(order)[cell]`` is the position of a cell.

    Raises:
        InputTypeError: ``order`` is not an int64 tensor.
        InputError: ``order`` is not a permutation of 0 … n-1.
    """
    import torch

    if not isinstance(order, torch.Tensor) or order.dtype != torch.int64:
        given = order.dtype if isinstance(order, torch.Tensor) else type(order).__name__
        raise InputTypeError(explain("an order is an int64 tensor", where="order", value=given, allowed="torch.int64"))
    count = order.numel()
    flat = order.flatten()
    in_range = bool(((flat >= 0) & (flat < count)).all())
    if order.dim() != 1 or not in_range or not bool((flat.bincount(minlength=count) == 1).all()):
        raise InputError(
            explain(
                "the order is not a permutation", where="order", value=tuple(order.shape), allowed="each of 0 … n-1"
            )
        )
    undone = torch.empty_like(order)
    undone[order] = torch.arange(count, device=order.device)
    return undone  # type: ignore[return-value]


def _coordinates(shape: Sequence[int]) -> list[Tensor]:
    """The coordinate of every cell along each axis, int64, shaped so that they broadcast to the grid."""
    import torch

    rank = range(len(shape))
    return [
        torch.arange(length).view([-1 if other == axis else 1 for other in rank]) for axis, length in enumerate(shape)
    ]


def _bits(shape: Sequence[int]) -> int:
    """Binary digits of the largest coordinate."""
    return (max(shape) - 1).bit_length()


def _digits(coordinates: Sequence[Tensor], bits: int) -> list[Tensor]:
    """The interleaved code of every cell as digits, low to high: a bit of each axis, that of the first one highest."""
    digits = []
    for bit in range(bits):
        digit = coordinates[0] >> bit & 1
        for line in coordinates[1:]:
            digit = digit << 1 | line >> bit & 1
        digits.append(digit.flatten())
    return digits


def _sorted_by_digits(digits: Sequence[Tensor]) -> LongTensor:
    """The cells sorted by codes of three-bit digits, low to high: longer codes than 64 bits are sorted in pieces."""
    import torch

    order = torch.zeros(1, dtype=torch.int64)
    for start in range(0, len(digits), _DIGITS_PER_KEY):
        key = torch.zeros_like(digits[start])
        for place, digit in enumerate(digits[start : start + _DIGITS_PER_KEY]):
            key |= digit << (3 * place)
        order = key.argsort() if start == 0 else order[key[order].argsort(stable=True)]
    return order  # type: ignore[return-value]


def _unfolded(coordinates: Sequence[Tensor], bits: int) -> list[Tensor]:
    """The cells moved so that the Morton order of where they come to lie is the Hilbert order of where they were.

    From the coarsest bit on, the part of the curve that lies in one half is turned and mirrored into the standard
    position (first loop); then the Gray code of the corners is undone.
    """
    import torch

    moved = [line.clone() for line in torch.broadcast_tensors(*coordinates)]  # type: ignore[no-untyped-call]  # torch leaves it untyped
    for bit in range(bits - 1, 0, -1):
        below = (1 << bit) - 1
        for axis, line in enumerate(moved):
            upper = (line >> bit & 1).bool()
            exchanged = torch.where(upper, 0, (moved[0] ^ line) & below)
            moved[axis] = line ^ exchanged
            moved[0] = torch.where(upper, moved[0] ^ below, moved[0] ^ exchanged)
    for axis in range(1, len(moved)):
        moved[axis] = moved[axis] ^ moved[axis - 1]
    flips = torch.zeros_like(moved[0])
    for bit in range(bits - 1, 0, -1):
        flips = flips ^ torch.where((moved[-1] >> bit & 1).bool(), (1 << bit) - 1, 0)
    return [line ^ flips for line in moved]


def _check_tile(tile: int | Sequence[int], rank: int) -> tuple[int, ...]:
    """The lengths of a tile, one per axis."""
    lengths = tuple(tile) if isinstance(tile, Sequence) else (tile,) * rank
    whole = all(isinstance(length, int) and not isinstance(length, bool) and length > 0 for length in lengths)
    if not whole or len(lengths) != rank:
        allowed = f"one positive whole length, or {rank} of them: one per axis of the grid"
        raise InputError(explain("not the tile of such a grid", where="tile", value=tile, allowed=allowed))
    return lengths


def _check_shape(shape: Sequence[int]) -> None:
    whole = all(isinstance(length, int) and not isinstance(length, bool) and length > 0 for length in shape)
    if not whole or not 1 <= len(shape) <= 3:
        allowed = "one to three positive whole lengths, such as (H, W) or (T, H, W)"
        raise InputError(explain("not the shape of a grid", where="shape", value=tuple(shape), allowed=allowed))
    if math.prod(shape) > MAX_CELLS:
        raise InputError(explain("the grid is too large", where="shape", value=tuple(shape), allowed="2**31 cells"))
