# SPDX-License-Identifier: Apache-2.0
"""Token orders: bijections for every grid, and neighbours in space that stay neighbours in the sequence."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llsa_gen.errors import InputError, InputTypeError
from llsa_gen.orders import hilbert, inverse, morton, raster, tiles

SHAPES = st.lists(st.integers(1, 12), min_size=1, max_size=3).map(tuple)
TILES = st.one_of(st.integers(1, 14), st.tuples(*[st.integers(1, 14)] * 3))


def tile_for(tile: int | tuple[int, ...], shape: tuple[int, ...]) -> int | tuple[int, ...]:
    """A drawn tile with as many lengths as the shape has."""
    return tile if isinstance(tile, int) else tile[: len(shape)]


def positions(order: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Coordinates of the cells along an order, [cells, axes]."""
    return torch.stack(torch.unravel_index(order, shape), -1)


def walked(side: int) -> list[tuple[int, int]]:
    """The Hilbert curve of a square, put together from four smaller ones: an independent statement of the order."""
    if side == 1:
        return [(0, 0)]
    part, half = walked(side // 2), side // 2
    turned = [(column, row) for row, column in part]
    mirrored = [(half - 1 - column, half - 1 - row) for row, column in part]
    return [
        *turned,
        *((row, column + half) for row, column in part),
        *((row + half, column + half) for row, column in part),
        *((row + half, column) for row, column in mirrored),
    ]


def interleaved(cell: tuple[int, ...]) -> int:
    """The code of one cell, bit by bit and from text: an independent statement of the order."""
    width = max(cell).bit_length()
    digits = [format(coordinate, f"0{max(width, 1)}b") for coordinate in cell]
    return int("".join("".join(bits) for bits in zip(*digits, strict=True)), 2)


def corner_and_extent(cells: torch.Tensor, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    rows, columns = cells // width, cells % width
    corner = (int(rows.min()), int(columns.min()))
    return corner, (int(rows.max()) - corner[0] + 1, int(columns.max()) - corner[1] + 1)


@given(shape=SHAPES, tile=TILES)
def test_every_order_is_a_bijection(shape: tuple[int, ...], tile: int | tuple[int, ...]) -> None:
    for order in (morton(shape), raster(shape), hilbert(shape), tiles(shape, tile_for(tile, shape))):
        assert order.dtype == torch.int64
        assert order.sort().values.equal(torch.arange(math.prod(shape)))


@given(shape=SHAPES, tile=TILES)
def test_inverse_undoes_an_order(shape: tuple[int, ...], tile: int | tuple[int, ...]) -> None:
    data = torch.arange(math.prod(shape)) * 3 + 1
    for order in (morton(shape), hilbert(shape), tiles(shape, tile_for(tile, shape))):
        assert data[order][inverse(order)].equal(data)
        assert inverse(inverse(order)).equal(order)


@given(shape=SHAPES)
def test_morton_sorts_by_interleaved_bits(shape: tuple[int, ...]) -> None:
    cells = torch.cartesian_prod(*(torch.arange(length) for length in shape)).reshape(-1, len(shape)).tolist()
    expected = sorted(range(len(cells)), key=lambda cell: interleaved(tuple(cells[cell])))
    assert morton(shape).tolist() == expected


def test_the_column_bit_is_least_significant() -> None:
    assert morton((2, 2)).tolist() == [0, 1, 2, 3]
    assert morton((2, 4)).tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    assert morton((2, 2, 2)).tolist() == list(range(8))


@pytest.mark.parametrize("shape", [(16, 16), (8, 32), (64, 4)])
def test_sixteen_consecutive_tokens_are_a_patch_of_four_by_four(shape: tuple[int, int]) -> None:
    for patch in morton(shape).view(-1, 16):
        corner, extent = corner_and_extent(patch, shape[1])
        assert extent == (4, 4)
        assert corner[0] % 4 == 0 and corner[1] % 4 == 0


def test_a_node_of_level_two_is_a_patch_of_sixteen_by_sixteen() -> None:
    for patch in morton((32, 64)).view(-1, 256):
        assert corner_and_extent(patch, 64)[1] == (16, 16)


def test_eight_consecutive_tokens_of_a_video_are_a_cube() -> None:
    shape = (4, 8, 4)
    for cube in morton(shape).view(-1, 8):
        frames, rest = cube // (8 * 4), cube % (8 * 4)
        assert frames.unique().numel() == 2
        assert corner_and_extent(rest, 4)[1] == (2, 2)


def test_one_axis_is_left_as_it_is() -> None:
    assert morton((13,)).equal(raster((13,)))
    assert morton((1, 1, 13)).equal(raster((13,)))


@pytest.mark.parametrize("order", [morton, hilbert])
def test_a_long_thin_video_needs_more_than_64_bits(order: Callable[..., torch.Tensor]) -> None:
    length = 2**22 + 3  # three axes of 23 bits
    assert order((1, 1, length)).equal(torch.arange(length))


@given(bits=st.integers(1, 5), axes=st.sampled_from([2, 3]))
def test_the_hilbert_curve_moves_to_a_neighbour_each_step(bits: int, axes: int) -> None:
    shape = (2 ** min(bits, 4 if axes == 3 else 5),) * axes
    cells = positions(hilbert(shape), shape)
    assert (cells.diff(dim=0).abs().sum(-1) == 1).all()
    assert not cells[0].any()


@given(bits=st.integers(1, 4), axes=st.sampled_from([2, 3]), data=st.data())
def test_aligned_pieces_of_the_hilbert_curve_are_squares_and_cubes(bits: int, axes: int, data: st.DataObject) -> None:
    shape = (2**bits,) * axes
    side = 2 ** data.draw(st.integers(0, bits))
    pieces = positions(hilbert(shape), shape).view(-1, side**axes, axes)
    corners = pieces.amin(1)
    assert (pieces.amax(1) - corners == side - 1).all()
    assert (corners % side == 0).all()


@pytest.mark.parametrize("side", [1, 2, 4, 8, 16, 32])
def test_the_hilbert_curve_of_a_square_consists_of_four_smaller_ones(side: int) -> None:
    assert positions(hilbert((side, side)), (side, side)).tolist() == [list(cell) for cell in walked(side)]


@given(shape=SHAPES)
def test_other_grids_keep_the_cells_of_the_curve_that_exist(shape: tuple[int, ...]) -> None:
    long = [length for length in shape if length > 1]
    if len(long) < 2:
        assert hilbert(shape).equal(raster(shape))
        return
    around = (2 ** (max(long) - 1).bit_length(),) * len(long)
    cells = positions(hilbert(around), around)
    inside = cells[(cells < torch.tensor(long)).all(-1)]
    assert positions(hilbert(shape), tuple(long)).equal(inside)


@given(shape=SHAPES, tile=TILES)
def test_tiles_follow_each_other_whole_in_raster_order(shape: tuple[int, ...], tile: int | tuple[int, ...]) -> None:
    sides = torch.tensor(tile_for(tile, shape)).expand(len(shape))
    cells = positions(tiles(shape, tile_for(tile, shape)), shape)
    keys = [(*outer, *inner) for outer, inner in zip((cells // sides).tolist(), (cells % sides).tolist(), strict=True)]
    assert keys == sorted(keys)


def test_extreme_tiles_are_raster_orders() -> None:
    for tile in (1, 6, 1000, (1, 6), (4, 6)):
        assert tiles((4, 6), tile).equal(raster((4, 6)))
    assert tiles((4, 6), (2, 3))[:6].tolist() == [0, 1, 2, 6, 7, 8]


@pytest.mark.parametrize("tile", [0, -2, 2.0, True, (2,), (2, 2, 2), (2, 0), (2, 2.0)])
def test_impossible_tiles_are_refused(tile: object) -> None:
    with pytest.raises(InputError, match="tile"):
        tiles((4, 4), tile)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(), (0,), (4, -1), (2, 2, 2, 2), (2.0, 2), (True, 4), (2**16, 2**16)])
@pytest.mark.parametrize("order", [morton, raster, hilbert, partial(tiles, tile=2)])
def test_impossible_grids_are_refused(order: Callable[..., object], shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="shape"):
        order(shape)


@pytest.mark.parametrize("entries", [[0, 0, 1], [1, 2, 3], [-1, 0, 1]])
def test_inverse_refuses_what_is_no_permutation(entries: list[int]) -> None:
    with pytest.raises(InputError, match="permutation"):
        inverse(torch.tensor(entries))


def test_inverse_refuses_other_types_and_shapes() -> None:
    with pytest.raises(InputTypeError, match="int64"):
        inverse(torch.tensor([0.0, 1.0]))
    with pytest.raises(InputTypeError, match="int64"):
        inverse([0, 1])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="permutation"):
        inverse(torch.tensor([[0, 1]]))


def test_importing_the_module_does_not_import_torch() -> None:
    code = "import sys, llsa_gen.orders; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
