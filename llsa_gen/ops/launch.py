# SPDX-License-Identifier: Apache-2.0
"""Launching kernels: tensors become pointers and strides, and the work is spread over CPU threads or sent to a stream."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor

from llsa_gen.errors import InputError, UnsupportedError, explain
from llsa_gen.jit import Kernel
from llsa_gen.jit.toolchain import target_of_capability

STRIDE_UNIT = 8  # elements; what kernels count strides in, see llsa_gen.jit.flavour
ALIGNMENT = 16  # bytes; what vector loads need

Arguments = Mapping[str, Tensor | int | float]


def target_of(device: torch.device) -> str:
    """The target whose kernels run on a device.

    Raises:
        UnsupportedError: There are no kernels for it.
    """
    if device.type == "cpu":
        return "cpu"
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        target = target_of_capability(capability)
        if target is not None:
            return target
        value, allowed = "compute capability %d.%d" % capability, "8.x, 9.0, 10.0"
        raise UnsupportedError(explain("there are no kernels for this GPU", value=value, allowed=allowed))
    allowed = "cpu, cuda"
    raise UnsupportedError(explain("there are no kernels for this device", value=str(device), allowed=allowed))


def readable(tensor: Tensor) -> Tensor:
    """The tensor as kernels can read it: itself, or one copy where strides or alignment do not allow that.

    Kernels need a last stride of 1, other strides in multiples of 8 elements and 16-byte alignment.
    """
    steps = [tensor.stride(axis) for axis in range(3) if tensor.shape[axis] > 1]
    fits = tensor.stride(3) == 1 and all(step % STRIDE_UNIT == 0 for step in steps)
    if fits and tensor.data_ptr() % ALIGNMENT == 0 and all(step // STRIDE_UNIT < 2**31 for step in steps):
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def strides(name: str, tensor: Tensor) -> dict[str, int]:
    """The stride arguments of a [B,H,N,D] tensor, in units of eight elements; axes of one element have none."""
    steps = [tensor.stride(axis) // STRIDE_UNIT if tensor.shape[axis] > 1 else 0 for axis in range(3)]
    return {f"{name}_sb": steps[0], f"{name}_sh": steps[1], f"{name}_sn": steps[2]}


def launch(kernel: Kernel, arguments: Arguments) -> None:
    """Runs a kernel over all batches and heads.

    Args:
        kernel: What to run.
        arguments: Values by parameter name; tensors have the batch and head as their first two axes. ``batch``,
            ``heads`` and ``kv_heads`` must be among them where the kernel takes them.
    """
    device = next(value.device for value in arguments.values() if isinstance(value, Tensor))
    if device.type == "cuda":
        _launch_on_stream(kernel, arguments, device)
    else:
        _launch_on_threads(kernel, arguments)


def _launch_on_stream(kernel: Kernel, arguments: Arguments, device: torch.device) -> None:
    with torch.cuda.device(device):
        kernel.prepare(torch.cuda.current_device())
        values = [_value(arguments[name], 0, 0) for name in kernel.parameters]
        kernel(*values, torch.cuda.current_stream(device).cuda_stream)


def _launch_on_threads(kernel: Kernel, arguments: Arguments) -> None:
    """One call per batch entry and head; the C kernels are serial, so heads run side by side."""
    single = {name: 1 if name in ("batch", "heads", "kv_heads") else value for name, value in arguments.items()}
    values = [single[name] for name in kernel.parameters]

    def run(slot: tuple[int, int]) -> None:
        kernel(*[_value(value, *slot) for value in values])

    slots = [(entry, head) for entry in range(_size(arguments, "batch")) for head in range(_size(arguments, "heads"))]
    threads = min(torch.get_num_threads(), len(slots))
    if threads <= 1:
        for slot in slots:
            run(slot)
    else:
        list(_pool(threads).map(run, slots))


def _size(arguments: Arguments, name: str) -> int:
    value = arguments[name]
    assert isinstance(value, int)
    return value


def _value(value: Tensor | int | float, entry: int, head: int) -> int | float:
    """The C value of an argument for one batch entry and head."""
    if not isinstance(value, Tensor):
        return value
    return value.data_ptr() + (entry * value.stride(0) + head * value.stride(1)) * value.element_size()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="llsa_gen")


def require_length(name: str, value: int) -> int:
    """A length that 32-bit kernel arguments can hold.

    Raises:
        InputError: It is too large.
    """
    if value >= 2**31:
        raise InputError(explain("a size does not fit the kernels' 32-bit arguments", where=name, value=value))
    return value
