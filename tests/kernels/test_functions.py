# SPDX-License-Identifier: Apache-2.0
"""The elementary functions of the CPU kernels against fp64, on every instruction set that this machine executes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from llsa_gen.jit.isa import executable_isas
from tests.kernels.small_kernels import mapped

EPSILON = 2.0**-24
"""What a number in fp32 changes by at most, relatively, when it is rounded."""
HERE = pytest.mark.parametrize("isa", executable_isas())


def computed(folder: Path, isa: str, function: str, numbers: Tensor) -> Tensor:
    """A function of numbers in fp32, in fp64."""
    return mapped(folder, isa, function, f"{function}(x_view[i, d])")(numbers, torch.float32).double()


@HERE
def test_exp2_is_right_to_two_roundings(isa: str, tmp_path: Path) -> None:
    x = torch.cat([torch.linspace(-125.499, 127.99, 2**16), torch.linspace(-2, 0, 2**16), torch.arange(-125.0, 128)])
    exact = x.double().exp2()
    assert float(((computed(tmp_path, isa, "exp2", x) - exact) / exact).abs().max()) <= 2 * EPSILON


@HERE
def test_exp2_of_small_numbers_whole_ones_and_nan(isa: str, tmp_path: Path) -> None:
    """Nothing of what is too small, nothing denormal, exact powers of whole numbers, NaN of NaN."""
    small = torch.tensor([-float("inf"), -3e38, -1e9, -1000.0, -150.0, -126.001, -126.0, -125.5])
    assert torch.equal(computed(tmp_path, isa, "exp2", small), torch.zeros(len(small)).double())
    near = computed(tmp_path, isa, "exp2", torch.linspace(-126, -125, 2**12))
    assert ((near == 0) | (near >= 2.0**-126)).all()
    whole = torch.arange(-125.0, 128)
    assert torch.equal(computed(tmp_path, isa, "exp2", whole), whole.double().exp2())
    bits = torch.tensor([0x7FC00000, 0x7FC00001, 0x7F800001, 0x7FFFFFFF, -1, -(2**22)], dtype=torch.int32)
    assert computed(tmp_path, isa, "exp2", bits.view(torch.float32)).isnan().all()


@HERE
def test_log2_is_right_to_four_roundings(isa: str, tmp_path: Path) -> None:
    """Of sums of shares: 1 to the number of keys, and whatever else a normal number can be."""
    near_one = 1 + torch.linspace(-0.5, 1, 2**16)
    x = torch.cat([near_one, torch.logspace(-37, 38, 2**16), torch.arange(-126.0, 128).exp2()])
    exact = x.double().log2()
    assert float(((computed(tmp_path, isa, "log2", x) - exact).abs() - 4 * EPSILON * exact.abs()).max()) <= 0
    assert computed(tmp_path, isa, "log2", torch.tensor([float("nan")])).isnan().all()
