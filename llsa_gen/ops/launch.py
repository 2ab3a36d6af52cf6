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
from itertools import product
from typing import NamedTuple, TypeAlias, cast

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
WORD = 8  # bytes of an address

Arguments = Mapping[str, Tensor | int | float]
Values: TypeAlias = "list[int | float] | array[int]"
PlaceOf = Callable[[Tensor], tuple[int, int]]
"""Says of a tensor which address of the pass it lies at, as a slot, and how many bytes behind it."""
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
    """Where an address goes among the values of launches.

    Attributes:
        place: Index of the value.
        slot: Which address of the pass.
        offset: Bytes behind it.
    """

    place: int
    slot: int
    offset: int


@dataclass(frozen=True)
class Launch(ABC):
    """A launch of which everything is decided but addresses, so that it can be made again and again.

    Attributes:
        kernel: What runs.
        first: Where its values begin among those of all launches of a pass.
        addresses: Where addresses go among those.
    """

    kernel: Kernel
    first: int
    addresses: tuple[Address, ...]

    @abstractmethod
    def run(self, values: Values, crew: int) -> None:
        """Launches.

        Args:
            values: Those of the pass, addresses filled in.
            crew: Who does the work, as `crew_of` says.
        """


@dataclass(frozen=True)
class TaskLaunch(Launch):
    """A CPU kernel, which spreads its tiles over threads of the pool that torch uses: one call for everything.

    Its values are its packed arguments, in words of 8 bytes.
    """

    def run(self, values: Values, crew: int) -> None:
        assert isinstance(values, array)
        self.kernel.run(crew, values.buffer_info()[0] + self.first * WORD)


@dataclass(frozen=True)
class StreamLaunch(Launch):
    """A GPU kernel, whose values are its arguments."""

    def run(self, values: Values, crew: int) -> None:
        self.kernel.run(*values[self.first : self.first + len(self.kernel.parameters)], crew)


@dataclass(frozen=True)
class HeadLaunch(Launch):
    """A GPU kernel as C, which is serial: one call per batch entry and head, side by side.

    Attributes:
        shape: Batch and heads.
        steps: Bytes from one batch entry and from one head to the next, for every address.
    """

    shape: tuple[int, int]
    steps: tuple[tuple[int, int], ...]

    def run(self, values: Values, crew: int) -> None:
        own = list(values[self.first : self.first + len(self.kernel.parameters)])

        def run_head(slot: tuple[int, int]) -> None:
            entry, head = slot
            of_head = own[:]
            for (place, _, _), (per_entry, per_head) in zip(self.addresses, self.steps, strict=True):
                of_head[place - self.first] += entry * per_entry + head * per_head
            self.kernel.run(*of_head)

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
    numbers: list[int | float] = []
    ready = launch_of(kernel, arguments, lambda tensor: (slots[id(tensor)], 0), device, numbers)
    values = values_of([ready], numbers)
    for place, slot, offset in ready.addresses:
        values[place] = tensors[slot].data_ptr() + offset
    crew = crew_of(device)

    def run(_held: Sequence[Tensor] = tensors) -> None:  # the values have addresses, which keep no tensor alive
        with guard(device):
            ready.run(values, crew())

    return run


def launch_of(
    kernel: Kernel, arguments: Arguments, place_of: PlaceOf, device: torch.device, numbers: list[int | float]
) -> Launch:
    """Decides everything about a launch but addresses.

    Args:
        kernel: What to run.
        arguments: Values by parameter name; tensors have the batch and head as their first two axes, and need no
            memory. ``batch``, ``heads`` and ``kv_heads`` must be among them where the kernel takes them.
        place_of: Which address a tensor of the arguments begins at.
        device: Where it will run.
        numbers: Its values are added to these, with 0 for addresses.

    Raises:
        InputError: There are more batches or heads than a GPU takes.
    """
    if device.type == "cuda":
        return _launch_on_stream(kernel, arguments, place_of, device, numbers)
    if kernel.arguments is not None:
        return _launch_of_tasks(kernel, kernel.arguments, arguments, place_of, numbers)
    return _launch_of_heads(kernel, arguments, place_of, numbers)


def values_of(launches: Sequence[Launch], numbers: list[int | float]) -> Values:
    """What some launches take for the values that they added to the numbers."""
    if all(isinstance(one, TaskLaunch) for one in launches):
        return array("q", cast(list[int], numbers))
    return numbers[:]


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


def _launch_on_stream(
    kernel: Kernel, arguments: Arguments, place_of: PlaceOf, device: torch.device, numbers: list[int | float]
) -> Launch:
    for name in ("batch", "heads"):
        if _size(arguments, name) > MAX_GRID:
            hint = "split the call along this axis"
            what = "a GPU launch takes at most this many"
            raise InputError(explain(what, where=name, value=arguments[name], allowed=f"up to {MAX_GRID}", hint=hint))
    with guard(device):
        kernel.prepare(torch.cuda.current_device())
    first, addresses = len(numbers), list[Address]()
    for name in kernel.parameters:
        _add(arguments[name], place_of, numbers, addresses)
    return StreamLaunch(kernel, first, tuple(addresses))


def _launch_of_tasks(
    kernel: Kernel, layout: struct.Struct, arguments: Arguments, place_of: PlaceOf, numbers: list[int | float]
) -> Launch:
    first, addresses = len(numbers), list[Address]()
    packed: list[int | float] = []
    for name in kernel.parameters:  # tensors come first, so that addresses are whole words
        value = arguments[name]
        if isinstance(value, Tensor):
            addresses.append(Address(first + len(packed), *place_of(value)))
            packed += (0, *_steps(value))
        else:
            packed.append(value)
    numbers += array("q", layout.pack(*packed) + bytes(-layout.size % WORD))
    return TaskLaunch(kernel, first, tuple(addresses))


def _launch_of_heads(kernel: Kernel, arguments: Arguments, place_of: PlaceOf, numbers: list[int | float]) -> Launch:
    first, addresses, steps = len(numbers), list[Address](), []
    for name in kernel.parameters:
        value = 1 if name in _COUNTS else arguments[name]
        if isinstance(value, Tensor):
            steps.append(_steps(value))
        _add(value, place_of, numbers, addresses)
    shape = (_size(arguments, "batch"), _size(arguments, "heads"))
    return HeadLaunch(kernel, first, tuple(addresses), shape, tuple(steps))


def _add(value: Tensor | int | float, place_of: PlaceOf, numbers: list[int | float], addresses: list[Address]) -> None:
    """Adds an argument to the numbers of a pass, with 0 for an address."""
    if isinstance(value, Tensor):
        addresses.append(Address(len(numbers), *place_of(value)))
    numbers.append(0 if isinstance(value, Tensor) else value)


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
