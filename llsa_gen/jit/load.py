# SPDX-License-Identifier: Apache-2.0
"""Loading built kernels: shared libraries called through ctypes, which lets go of the interpreter lock."""

from __future__ import annotations

import ctypes
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

from llsa_gen.codegen import KernelInstance, KernelPackage
from llsa_gen.errors import InternalError, OutputError, explain
from llsa_gen.jit import cache as store
from llsa_gen.jit.build import kernel_digest
from llsa_gen.paths import CACHE_VARIABLE
from llsa_gen.targets import Target, get_target

_C_TYPES: dict[str, Any] = {"handle": ctypes.c_void_p, "int32": ctypes.c_int32, "float32": ctypes.c_float}


class Kernel:
    """One loaded kernel.

    Attributes:
        name: Unique in its spec.
        parameters: Names of its arguments, in order.
    """

    def __init__(self, instance: KernelInstance, library: Path, target: Target) -> None:
        self.name = instance.name
        self.parameters = tuple(parameter.name for parameter in instance.parameters)
        self._library = _open(library)
        self._call = self._library.call
        stream = (ctypes.c_void_p,) if target.is_cuda else ()
        self._call.argtypes = (*(_C_TYPES[parameter.type] for parameter in instance.parameters), *stream)
        self._call.restype = ctypes.c_int32
        self._library.get_last_error.restype = ctypes.c_char_p
        self._is_cuda = target.is_cuda
        self._ready: set[int] = set()

    def prepare(self, device: int) -> None:
        """Readies the kernel on a GPU, once per device; the device must be the current one."""
        if self._is_cuda and device not in self._ready:
            self._check(self._library.init())
            self._ready.add(device)

    def __call__(self, *arguments: int | float) -> None:
        """Runs the kernel; on a GPU the last argument is the stream, and the launch does not wait.

        Raises:
            InternalError: The launch was refused; holds the driver's message.
        """
        self._check(self._call(*arguments))

    def _check(self, status: int) -> None:
        if status:
            said = self._library.get_last_error().decode(errors="replace")
            raise InternalError(explain("a kernel could not be launched", where=self.name, value=said))


def _open(library: Path) -> ctypes.CDLL:
    """Opens a library of the cache.

    Raises:
        OutputError: The system refuses, for example on a file system that is mounted noexec.
    """
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        what, hint = "a compiled kernel could not be opened", f"name another folder: {CACHE_VARIABLE}=DIR"
        raise OutputError(explain(what, where=str(library), value=str(error), hint=hint)) from error


def load_kernels(package: KernelPackage, target: str, only: Collection[str]) -> dict[str, Kernel] | None:
    """The kernels of a package that are named, or None where one of them is not built."""
    found: dict[str, Kernel] = {}
    for kernel in package.kernels:
        if kernel.name not in only:
            continue
        loaded = load_kernel(package, kernel, target)
        if loaded is None:
            return None
        found[kernel.name] = loaded
    return found


def load_kernel(package: KernelPackage, kernel: KernelInstance, target: str) -> Kernel | None:
    """One kernel, which may have another schedule than the package gives it, or None where it is not built."""
    machine = get_target(target)
    entry = store.find(kernel_digest(package, kernel, machine))
    return None if entry is None else _load(kernel, entry.library, machine)


@cache
def _load(instance: KernelInstance, library: Path, target: Target) -> Kernel:
    return Kernel(instance, library, target)
