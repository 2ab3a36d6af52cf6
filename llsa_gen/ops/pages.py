# SPDX-License-Identifier: Apache-2.0
"""Huge pages for large memory of CPU tensors, where the system grants them on request.

Memory of many MiB is often new to the process in every call, which then takes a page fault at every page of it: with
pages of 4 KiB some 8,000 for the output of 65,536 tokens (32 MiB: 2 heads, D=64, fp32). Kernels that jump between
tokens also find more of them without a walk of the page table.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

Memory = Tensor | torch.UntypedStorage
M = TypeVar("M", Tensor, torch.UntypedStorage, Memory)

LARGE_BYTES = 8 * 2**20
"""From here on memory is worth the request; it holds a few huge pages of 2 MiB whole, wherever it begins."""

_ADVICE = getattr(mmap, "MADV_HUGEPAGE", None)
_advise = getattr(ctypes.CDLL(None), "madvise", None)


def storage_of(memory: Memory) -> torch.UntypedStorage:
    """The bytes of a piece of memory, which may be a tensor."""
    return memory.untyped_storage() if isinstance(memory, Tensor) else memory


def made_for(device: torch.device, size: int, make: Callable[[], M]) -> Callable[[], M]:
    """What makes memory as it is best for a device: in huge pages where it is large and of a CPU.

    Args:
        device: Where the memory is.
        size: Its bytes.
        make: What makes it.
    """
    return partial(_in_huge_pages, make) if device.type == "cpu" and size >= LARGE_BYTES else make


def _in_huge_pages(make: Callable[[], M]) -> M:
    """Makes memory and asks the system for huge pages in it; where there are none it is as any other."""
    memory = make()
    storage = storage_of(memory)
    first = -(-storage.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    size = storage.data_ptr() + storage.nbytes() - first
    if _ADVICE is not None and _advise is not None and size > 0:
        _advise(ctypes.c_void_p(first), ctypes.c_size_t(size), _ADVICE)
    return memory
