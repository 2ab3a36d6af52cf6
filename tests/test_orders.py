# SPDX-License-Identifier: Apache-2.0
"""Token orders: bijections for every grid, and neighbours in space that stay neighbours in the sequence."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llsa_gen.errors import InputError, InputTypeError
from llsa_gen.orders import inverse, morton, raster

SHAPES = st.lists(st.integers(1, 12), min_size=1, max_size=3).map(tuple)


def interleaved(cell: tuple[int, ...]) -> int:
    """The code of one cell, bit by bit and from text: an independent statement of the order."""
    width = max(cell).bit_length()
    digits = [format(coordinate, f"0{max(width, 1)}b") for coordinate in cell]
    return int("".join("".join(bits) for bits in zip(*digits, strict=True)), 2)


def corner_and_extent(cells: torch.Tensor, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    rows, columns = cells // width, cells % width
    corner = (int(rows.min()), int(columns.min()))
    return corner, (int(rows.max()) - corner[0] + 1, int(columns.max()) - corner[1] + 1)


@given(shape=SHAPES)
def test_every_order_is_a_bijection(shape: tuple[int, ...]) -> None:
    for order in (morton(shape), raster(shape)):
        assert order.dtype == torch.int64
        assert order.sort().values.equal(torch.arange(math.prod(shape)))


@given(shape=SHAPES)
def test_inverse_undoes_an_order(shape: tuple[int, ...]) -> None:
    order = morton(shape)
    data = torch.arange(math.prod(shape)) * 3 + 1
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


@pytest.mark.parametrize("shape", [(), (0,), (4, -1), (2, 2, 2, 2), (2.0, 2), (True, 4), (2**16, 2**16)])
@pytest.mark.parametrize("order", [morton, raster])
def test_impossible_grids_are_refused(order: object, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="shape"):
        order(shape)  # type: ignore[operator]


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
