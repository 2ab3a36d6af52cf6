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
"""Most cells of a grid; also keeps every interleaved code far inside 64 bits."""


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
    import torch

    _check_shape(shape)
    code = torch.zeros(tuple(shape), dtype=torch.int64)
    for axis, length in enumerate(shape):
        place = len(shape) - 1 - axis
        line = torch.arange(length)
        spread = torch.zeros_like(line)
        for bit in range((length - 1).bit_length()):
            spread |= ((line >> bit) & 1) << (bit * len(shape) + place)
        code |= spread.view([-1 if other == axis else 1 for other in range(len(shape))])
    return code.flatten().argsort()  # type: ignore[return-value]


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


def _check_shape(shape: Sequence[int]) -> None:
    whole = all(isinstance(length, int) and not isinstance(length, bool) and length > 0 for length in shape)
    if not whole or not 1 <= len(shape) <= 3:
        allowed = "one to three positive whole lengths, such as (H, W) or (T, H, W)"
        raise InputError(explain("not the shape of a grid", where="shape", value=tuple(shape), allowed=allowed))
    if math.prod(shape) > MAX_CELLS:
        raise InputError(explain("the grid is too large", where="shape", value=tuple(shape), allowed="2**31 cells"))
