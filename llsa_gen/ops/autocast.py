# SPDX-License-Identifier: Apache-2.0
"""Autocast: attention takes part in it as `scaled_dot_product_attention` does."""

from __future__ import annotations

import torch
from torch import Tensor

_CAST = (torch.float32, torch.float16, torch.bfloat16)


def at_autocast_dtype(tensors: tuple[Tensor, ...], dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
    """The tensors in one dtype where autocast is on, themselves otherwise.

    QK-norm gives fp32 queries and keys under autocast while values are half precision, so they have to be brought
    together. Dtypes that autocast leaves alone, such as float64, stay as they are.

    Args:
        tensors: Queries, keys and perhaps values on one device.
        dtype: What to cast to; the dtype of autocast when not given.
    """
    kind = "cpu" if tensors[0].is_cpu else tensors[0].device.type  # the latter takes longer
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return tensors
    wanted = torch.get_autocast_dtype(kind) if dtype is None else dtype
    return tuple(tensor.to(wanted) if tensor.dtype in _CAST else tensor for tensor in tensors)
