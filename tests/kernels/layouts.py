# SPDX-License-Identifier: Apache-2.0
"""Ways in which the tensors of a caller lie in memory: each keeps the values and changes the strides."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from llsa_gen.workloads import Qkv

Layout = Callable[[Qkv], Qkv]


def tokens_first(qkv: Qkv) -> Qkv:
    """Views of [B,N,H,D] tensors."""
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in qkv)
    return q, k, v


def fused(qkv: Qkv) -> Qkv:
    """Slices of one [B,N,H,D+D+Dv] projection."""
    widths = [x.shape[-1] for x in qkv]
    whole = torch.cat([x.transpose(1, 2) for x in qkv], dim=-1)
    q, k, v = (part.transpose(1, 2) for part in torch.split(whole, widths, dim=-1))
    return q, k, v


def features_apart(qkv: Qkv) -> Qkv:
    """Views of [B,H,D,N] tensors: the last stride is not 1."""
    q, k, v = (x.mT.contiguous().mT for x in qkv)
    return q, k, v


def every_second_token(qkv: Qkv) -> Qkv:
    """Every second row of longer tensors, with NaN between."""
    q, k, v = (_spread(x)[:, :, ::2] for x in qkv)
    return q, k, v


def misaligned(qkv: Qkv) -> Qkv:
    """Tensors that begin one element behind an aligned address."""
    q, k, v = (_shifted(x) for x in qkv)
    return q, k, v


def odd_rows(qkv: Qkv) -> Qkv:
    """Rows of D + 3 elements, no multiple of the unit of strides."""
    q, k, v = (_inside(x, 0, 3, torch.nan)[..., : x.shape[-1]] for x in qkv)
    return q, k, v


def mixed(qkv: Qkv) -> Qkv:
    """Another layout for each of the three."""
    return tokens_first(qkv)[0], every_second_token(qkv)[1], fused(qkv)[2]


LAYOUTS: tuple[Layout, ...] = (
    tokens_first,
    fused,
    features_apart,
    every_second_token,
    misaligned,
    odd_rows,
    mixed,
)


def fenced(x: Tensor, rows: int, fill: float) -> Tensor:
    """The values of x as the front of a longer sequence whose other rows hold one number."""
    return _inside(x, rows, 0, fill)[:, :, : x.shape[2]]


FILLS = (torch.nan, 1.0)
"""What lies behind a sequence in two calls; what reads it differs between them, whatever the allocator left there."""


def far_apart(x: Tensor, folder: Path) -> Tensor:
    """One sequence [1,1,N,D] whose last row lies 2**31 elements behind the first.

    On a CPU the memory is a sparse file, of which only the touched pages exist. As much lies before the first row as
    behind it, so that an offset that wraps around reads zeros instead of memory that is not there.
    """
    assert x.shape[:2] == (1, 1) and x.dtype == torch.float32
    step, reach = 2**31 // (x.shape[2] - 1), 2**31
    size = 2 * reach + x.shape[3]
    if x.device.type == "cuda":
        storage = torch.zeros(size, dtype=x.dtype, device=x.device)
    else:
        storage = torch.from_file(str(folder / "sparse"), shared=True, size=size, dtype=x.dtype)
    view = storage.as_strided(x.shape, (size, size, step, 1), reach)
    return view.copy_(x)


def _spread(x: Tensor) -> Tensor:
    spread = x.new_full((*x.shape[:2], 2 * x.shape[2], x.shape[3]), torch.nan)
    spread[:, :, ::2] = x
    return spread


def _shifted(x: Tensor) -> Tensor:
    return x.new_empty(x.numel() + 1)[1:].view(x.shape).copy_(x)


def _inside(x: Tensor, rows: int, columns: int, fill: float) -> Tensor:
    whole = x.new_full((*x.shape[:2], x.shape[2] + rows, x.shape[3] + columns), fill)
    whole[:, :, : x.shape[2], : x.shape[3]] = x
    return whole
