# SPDX-License-Identifier: Apache-2.0
"""Launching kernels: tensors become pointers and strides, and the work goes to CPU threads or to a stream."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor

from llsa_gen.errors import InputError, UnsupportedError, did_you_mean, explain
from llsa_gen.jit import Kernel
from llsa_gen.jit.toolchain import target_of_capability
from llsa_gen.targets import CPU_TARGETS, CPU_VARIABLE

STRIDE_UNIT = 8  # elements; what kernels count strides in, see llsa_gen.jit.flavour
MAX_GRID = 65535  # the y and z axes of a CUDA grid, which hold heads and batches
ALIGNMENT = 16  # bytes; what vector loads need

Arguments = Mapping[str, Tensor | int | float]
_COUNTS = ("batch", "heads", "kv_heads")


def target_of(device: torch.device) -> str:
    """The target whose kernels run on a device.

    Raises:
        UnsupportedError: There are no kernels for it.
    """
    if device.type == "cpu":
        return _target_of_cpus()
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        target = target_of_capability(capability)
        if target is not None:
            return target
        value, allowed = f"compute capability {capability[0]}.{capability[1]}", "8.x, 9.0, 10.0"
        raise UnsupportedError(explain("there are no kernels for this GPU", value=value, allowed=allowed))
    allowed = "cpu, cuda"
    raise UnsupportedError(explain("there are no kernels for this device", value=str(device), allowed=allowed))


def _target_of_cpus() -> str:
    """The target of this process's choice: CPU kernels, or for tests those of a GPU as C code."""
    chosen = os.environ.get(CPU_VARIABLE, "").strip() or CPU_TARGETS[0]
    if chosen not in CPU_TARGETS:
        what, where = "there is no such target for CPUs", f"environment variable {CPU_VARIABLE}"
        raise UnsupportedError(
            explain(what, where=where, value=chosen, allowed=CPU_TARGETS, hint=did_you_mean(chosen, CPU_TARGETS))
        )
    return chosen


def readable(tensor: Tensor) -> Tensor:
    """The tensor as kernels can read it: itself, or one copy where strides or alignment do not allow that.

    Kernels need a last stride of 1, other strides in multiples of 8 elements and 16-byte alignment.
    """
    *outer, last = tensor.stride()
    steps = [step for step, extent in zip(outer, tensor.shape, strict=False) if extent > 1]
    fits = last == 1 and all(step % STRIDE_UNIT == 0 and step // STRIDE_UNIT < 2**31 for step in steps)
    if fits and tensor.data_ptr() % ALIGNMENT == 0:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def strides(name: str, tensor: Tensor) -> dict[str, int]:
    """The stride arguments of a [B,H,N,D] tensor, in units of eight elements; axes of one element have none."""
    batch, heads, rows, _ = tensor.shape
    sb, sh, sn, _ = tensor.stride()
    return {
        f"{name}_sb": sb // STRIDE_UNIT if batch > 1 else 0,
        f"{name}_sh": sh // STRIDE_UNIT if heads > 1 else 0,
        f"{name}_sn": sn // STRIDE_UNIT if rows > 1 else 0,
    }


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
    elif kernel.arguments is not None:
        _launch_tasks(kernel, kernel.arguments, arguments)
    else:
        _launch_on_threads(kernel, arguments)


def _launch_on_stream(kernel: Kernel, arguments: Arguments, device: torch.device) -> None:
    for name in ("batch", "heads"):
        if _size(arguments, name) > MAX_GRID:
            hint = "split the call along this axis"
            what = "a GPU launch takes at most this many"
            raise InputError(explain(what, where=name, value=arguments[name], allowed=f"up to {MAX_GRID}", hint=hint))
    with torch.cuda.device(device):
        kernel.prepare(torch.cuda.current_device())
        values = [arguments[name] for name in kernel.parameters]
        pointers = [value.data_ptr() if isinstance(value, Tensor) else value for value in values]
        kernel(*pointers, torch.cuda.current_stream(device).cuda_stream)


def _launch_tasks(kernel: Kernel, layout: struct.Struct, arguments: Arguments) -> None:
    """One call for everything: the kernel spreads its tiles over threads of the pool that torch uses."""
    packed: list[int | float] = []
    for name in kernel.parameters:
        value = arguments[name]
        if isinstance(value, Tensor):
            sb, sh = value.stride()[:2]
            size = value.element_size()
            packed += (value.data_ptr(), sb * size, sh * size)
        else:
            packed.append(value)
    threads = torch.get_num_threads() if os.getpid() == _HOME else 1
    kernel(threads, layout.pack(*packed))


def _launch_on_threads(kernel: Kernel, arguments: Arguments) -> None:
    """One call per batch entry and head; the C kernels are serial, so heads run side by side."""
    places = [_place(1 if name in _COUNTS else arguments[name]) for name in kernel.parameters]

    def run(slot: tuple[int, int]) -> None:
        entry, head = slot
        kernel(*[first + entry * per_entry + head * per_head for first, per_entry, per_head in places])

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


def _place(value: Tensor | int | float) -> tuple[int | float, int, int]:
    """The C value of an argument for the first batch entry and head, and what each entry and head adds to it."""
    if not isinstance(value, Tensor):
        return value, 0, 0
    sb, sh = value.stride()[:2]
    size = value.element_size()
    return value.data_ptr(), sb * size, sh * size


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="llsa_gen")


_HOME = os.getpid()
"""The process that loaded this module; OpenMP's threads do not come along into a fork of it."""

os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not live on in a forked process
