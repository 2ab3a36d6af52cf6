# SPDX-License-Identifier: Apache-2.0
"""Launching kernels: tensors become addresses and strides, and the work goes to CPU threads or to a stream."""

from __future__ import annotations

import os
import struct
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from itertools import chain, product
from typing import NamedTuple

import torch
from torch import Tensor

from llsa_gen.errors import InputError, UnsupportedError, did_you_mean, explain
from llsa_gen.jit import Kernel
from llsa_gen.jit.toolchain import target_of_capability
from llsa_gen.targets import CPU_TARGETS, CPU_VARIABLE

STRIDE_UNIT = 8
"""Elements that strides are handed over in. It is the kernels' rule: they take their unit from `jit.flavour` and
`jit.lanes`, which belong to the identity of a compiled kernel and import compilers; a test holds the three together."""
VECTOR_ALIGNMENT = 16
"""Bytes that the address of a tensor must be a multiple of: the vector loads of the kernels need it."""
MAX_GRID = 65535  # the y and z axes of a CUDA grid, which hold heads and batches
WORD = 8  # bytes of an address, which packed arguments are filled up to
CPU_TARGET = os.environ.get(CPU_VARIABLE, "").strip() or CPU_TARGETS[0]
"""Whose kernels serve tensors on a CPU. The environment is asked once, because it answers slowly; tests change this."""

Arguments = Mapping[str, Tensor | int | float]
PlaceOf = Callable[[Tensor], tuple[int, int]]
"""Says of a tensor in which memory of the pass it lies, as a slot, and how many bytes behind its address."""
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
    if CPU_TARGET not in CPU_TARGETS:
        what, where = "there is no such target for CPUs", f"environment variable {CPU_VARIABLE}"
        hint = did_you_mean(CPU_TARGET, CPU_TARGETS)
        raise UnsupportedError(explain(what, where=where, value=CPU_TARGET, allowed=CPU_TARGETS, hint=hint))
    return CPU_TARGET


def is_readable(tensor: Tensor) -> bool:
    """Whether kernels can read a tensor as it lies in memory.

    They need a last stride of 1, other strides in multiples of 8 elements and 16-byte alignment.
    """
    *outer, last = tensor.stride()
    steps = [step for step, extent in zip(outer, tensor.shape, strict=False) if extent > 1]
    fits = last == 1 and all(step % STRIDE_UNIT == 0 and step // STRIDE_UNIT < 2**31 for step in steps)
    return fits and tensor.data_ptr() % VECTOR_ALIGNMENT == 0


def strides(name: str, tensor: Tensor) -> dict[str, int]:
    """The stride arguments of a [B,H,N,D] tensor, in units of eight elements; axes of one element have none."""
    batch, heads, rows, _ = tensor.shape
    sb, sh, sn, _ = tensor.stride()
    return {
        f"{name}_sb": sb // STRIDE_UNIT if batch > 1 else 0,
        f"{name}_sh": sh // STRIDE_UNIT if heads > 1 else 0,
        f"{name}_sn": sn // STRIDE_UNIT if rows > 1 else 0,
    }


class Address(NamedTuple):
    """Where an address goes among the values of a launch.

    Attributes:
        place: Index of the value.
        slot: Which memory of the pass.
        offset: Bytes behind its address.
    """

    place: int
    slot: int
    offset: int


class Launch(ABC):
    """A launch of which everything is decided but addresses, so that it can be made again and again.

    Attributes:
        kernels: What runs, in order.
    """

    kernels: tuple[Kernel, ...]

    @abstractmethod
    def run(self, memory: Sequence[int], crew: int) -> None:
        """Launches.

        Args:
            memory: The addresses of the pass, by slot.
            crew: Who does the work, as `crew_of` says.
        """


class TaskLaunch(Launch):
    """CPU kernels, which spread their tiles over threads of the pool that torch uses: one call for all of them.

    Args:
        kernels: What runs, in order.
        arguments: For each its packed arguments, in words of 8 bytes. C is told where they lie, so nothing may change
            their length.
    """

    def __init__(self, kernels: Sequence[Kernel], arguments: Sequence[array[int]]) -> None:
        self.kernels, self.arguments = tuple(kernels), tuple(arguments)
        pairs = zip(self.kernels, self.arguments, strict=True)
        self._calls = array("q", [word for kernel, held in pairs for word in (kernel.entry, held.buffer_info()[0])])
        self._address = self._calls.buffer_info()[0]

    def run(self, memory: Sequence[int], crew: int) -> None:
        words = struct.pack(f"{len(memory)}q", *memory)  # CPython aligns what bytes hold as any memory that it takes
        self.kernels[0].run_all(crew, self._address, len(self.kernels), words)


@dataclass(frozen=True)
class FilledLaunch(Launch):
    """A kernel that takes its arguments one by one.

    Attributes:
        kernels: The kernel.
        values: Its arguments, with 0 for addresses.
        addresses: Where those go.
    """

    kernels: tuple[Kernel]
    values: tuple[int | float, ...]
    addresses: tuple[Address, ...]

    def filled(self, memory: Sequence[int]) -> list[int | float]:
        """The arguments with the addresses of a call."""
        values = list(self.values)
        for place, slot, offset in self.addresses:
            values[place] = memory[slot] + offset
        return values


@dataclass(frozen=True)
class StreamLaunch(FilledLaunch):
    """A GPU kernel, on a stream."""

    def run(self, memory: Sequence[int], crew: int) -> None:
        self.kernels[0].run(*self.filled(memory), crew)


@dataclass(frozen=True)
class HeadLaunch(FilledLaunch):
    """A GPU kernel as C, which is serial: one call per batch entry and head, side by side.

    Attributes:
        shape: Batch and heads.
        steps: Bytes from one batch entry and from one head to the next, for every address.
    """

    shape: tuple[int, int]
    steps: tuple[tuple[int, int], ...]

    def run(self, memory: Sequence[int], crew: int) -> None:
        own = self.filled(memory)

        def run_head(slot: tuple[int, int]) -> None:
            entry, head = slot
            of_head = own[:]
            for (place, _, _), (per_entry, per_head) in zip(self.addresses, self.steps, strict=True):
                of_head[place] += entry * per_entry + head * per_head
            self.kernels[0].run(*of_head)

        batch, heads = self.shape
        slots = list(product(range(batch), range(heads)))
        threads = min(torch.get_num_threads(), len(slots))
        if threads <= 1:
            for slot in slots:
                run_head(slot)
        else:
            list(_pool(threads).map(run_head, slots))


def launch(kernel: Kernel, arguments: Arguments) -> None:
    """Runs a kernel once over all batches and heads; arguments and errors as `launch_of`."""
    launcher(kernel, arguments)()


def launcher(kernel: Kernel, arguments: Arguments) -> Callable[[], None]:
    """Returns what runs a kernel over all batches and heads of these tensors as often as it is called.

    Arguments and errors as `launch_of`. Everything is decided here, so that a call costs the host little.
    """
    tensors = [value for value in arguments.values() if isinstance(value, Tensor)]
    slots = {id(tensor): slot for slot, tensor in enumerate(tensors)}
    device = tensors[0].device
    ready = launch_of(kernel, arguments, lambda tensor: (slots[id(tensor)], 0), device)
    memory, crew = [tensor.data_ptr() for tensor in tensors], crew_of(device)

    def run(_held: Sequence[Tensor] = tensors) -> None:  # addresses keep no tensor alive
        with guard(device):
            ready.run(memory, crew())

    return run


def launch_of(kernel: Kernel, arguments: Arguments, place_of: PlaceOf, device: torch.device) -> Launch:
    """Decides everything about a launch but addresses.

    Args:
        kernel: What to run.
        arguments: Values by parameter name; tensors have the batch and head as their first two axes, and need no
            memory. ``batch``, ``heads`` and ``kv_heads`` must be among them where the kernel takes them.
        place_of: Which memory a tensor of the arguments lies in, and where.
        device: Where it will run.

    Raises:
        InputError: There are more batches or heads than a GPU takes.
    """
    if device.type == "cuda":
        return _launch_on_stream(kernel, arguments, place_of, device)
    if kernel.arguments is not None:
        return _launch_of_tasks(kernel, kernel.arguments, arguments, place_of)
    return _launch_of_heads(kernel, arguments, place_of)


def joined(launches: Sequence[Launch]) -> tuple[Launch, ...]:
    """Launches that come one after the other: those of CPU kernels become one."""
    tasks = [one for one in launches if isinstance(one, TaskLaunch)]
    if len(tasks) < len(launches):
        return tuple(launches)
    return (TaskLaunch([*chain(*(one.kernels for one in tasks))], [*chain(*(one.arguments for one in tasks))]),)


def crew_of(device: torch.device) -> Callable[[], int]:
    """Says who runs the launches of a pass, each time: on a GPU a stream, on a CPU so many threads."""
    if device.type == "cuda":
        return lambda: int(torch.cuda.current_stream(device).cuda_stream)
    return _threads


def guard(device: torch.device) -> AbstractContextManager[None]:
    """Makes a GPU the current one for a while; does nothing for a CPU."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _threads() -> int:
    return torch.get_num_threads() if os.getpid() == _HOME else 1


def _launch_on_stream(kernel: Kernel, arguments: Arguments, place_of: PlaceOf, device: torch.device) -> Launch:
    for name in ("batch", "heads"):
        if _size(arguments, name) > MAX_GRID:
            hint = "split the call along this axis"
            what = "a GPU launch takes at most this many"
            raise InputError(explain(what, where=name, value=arguments[name], allowed=f"up to {MAX_GRID}", hint=hint))
    with guard(device):
        kernel.prepare(torch.cuda.current_device())
    values = [arguments[name] for name in kernel.parameters]
    return StreamLaunch((kernel,), *_apart(values, place_of))


def _launch_of_tasks(kernel: Kernel, layout: struct.Struct, arguments: Arguments, place_of: PlaceOf) -> Launch:
    packed: list[int | float] = []
    for name in kernel.parameters:
        value = arguments[name]
        packed += (*place_of(value), *_steps(value)) if isinstance(value, Tensor) else (value,)
    return TaskLaunch([kernel], [array("q", layout.pack(*packed) + bytes(-layout.size % WORD))])


def _launch_of_heads(kernel: Kernel, arguments: Arguments, place_of: PlaceOf) -> Launch:
    values = [1 if name in _COUNTS else arguments[name] for name in kernel.parameters]
    steps = tuple(_steps(value) for value in values if isinstance(value, Tensor))
    shape = (_size(arguments, "batch"), _size(arguments, "heads"))
    return HeadLaunch((kernel,), *_apart(values, place_of), shape, steps)


def _apart(
    values: Sequence[Tensor | int | float], place_of: PlaceOf
) -> tuple[tuple[int | float, ...], tuple[Address, ...]]:
    """The arguments of a kernel with 0 for addresses, and where those go."""
    addresses = [Address(at, *place_of(value)) for at, value in enumerate(values) if isinstance(value, Tensor)]
    return tuple(0 if isinstance(value, Tensor) else value for value in values), tuple(addresses)


def _steps(tensor: Tensor) -> tuple[int, int]:
    """Bytes from one batch entry and from one head of a tensor to the next."""
    sb, sh = tensor.stride()[:2]
    size = tensor.element_size()
    return sb * size, sh * size


def _size(arguments: Arguments, name: str) -> int:
    value = arguments[name]
    assert isinstance(value, int)
    return value


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="llsa_gen")


_HOME = os.getpid()
"""The process that loaded this module; OpenMP's threads do not come along into a fork of it."""

os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not live on in a forked process
