# SPDX-License-Identifier: Apache-2.0
"""Loading built kernels: shared libraries called through ctypes, which lets go of the interpreter lock."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import threading
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

from llsa_gen.codegen import KernelInstance, KernelPackage
from llsa_gen.errors import InternalError, OutputError, explain
from llsa_gen.jit import cache as store
from llsa_gen.jit.architecture import require_executable
from llsa_gen.jit.identity import digest_with_schedule
from llsa_gen.jit.tasks import layout_of
from llsa_gen.paths import CACHE_VARIABLE
from llsa_gen.targets import Target, get_target

_C_TYPES: dict[str, Any] = {"handle": ctypes.c_void_p, "int32": ctypes.c_int32, "float32": ctypes.c_float}


class Kernel:
    """One loaded kernel.

    Attributes:
        name: Unique in its spec.
        parameters: Names of its arguments, in order.
        arguments: How arguments are packed, for a kernel that spreads the tiles of all batches and heads over threads
            itself: memory, offset, bytes to the next batch entry and to the next head of tensors, then the numbers.
        entry: Its address, which a sequence of calls names it by.

    Raises:
        OSError: The library cannot be opened.
    """

    def __init__(self, instance: KernelInstance, library: Path, target: Target) -> None:
        self.name = instance.name
        self.parameters = tuple(parameter.name for parameter in instance.parameters)
        self.arguments = layout_of(instance.parameters) if target.language == "tvm" else None
        self._library = _open(library)
        self._call = self._library.call
        self.entry = ctypes.cast(self._call, ctypes.c_void_p).value or 0
        if self.arguments is not None:
            self._call_all = self._library.call_all
            self._call_all.argtypes = (ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64, ctypes.c_char_p)
            self._call_all.restype = None
        else:
            stream = (ctypes.c_void_p,) if target.is_cuda else ()
            self._call.argtypes = (*(_C_TYPES[parameter.type] for parameter in instance.parameters), *stream)
            self._call.restype = ctypes.c_int32
            self._library.get_last_error.restype = ctypes.c_char_p
        self._is_cuda = target.is_cuda
        self._ready: set[int] = set()

    def prepare(self, device: int) -> None:
        """Readies the kernel on a GPU, once per device; the device must be the current one."""
        if self._is_cuda and device not in self._ready:
            if self._library.init():
                raise self._refusal()
            self._ready.add(device)

    def run_all(self, threads: int, calls: int, count: int, memory: bytes) -> None:
        """Runs calls of kernels with packed arguments, such as this one is.

        Args:
            threads: The most threads that work.
            calls: Address of the calls: of each the entry of a kernel and the address of its arguments.
            count: How many they are.
            memory: Addresses of memory, in words of 8 bytes.
        """
        self._call_all(threads, calls, count, memory)

    def run(self, *arguments: int | float) -> None:
        """Runs a kernel without packed arguments; on a GPU the last one is the stream, and the launch does not wait.

        Raises:
            InternalError: The launch was refused; holds the driver's message.
        """
        if self._call(*arguments):
            raise self._refusal()

    def _refusal(self) -> InternalError:
        said = self._library.get_last_error().decode(errors="replace")
        return InternalError(explain("a kernel could not be launched", where=self.name, value=said))


def _open(library: Path) -> ctypes.CDLL:
    """Opens a library; one that is cut short would not be refused but crash the process.

    Raises:
        OSError: The system refuses, or the file is not as long as it says.
    """
    content = library.read_bytes()
    if len(content) < _extent(content):
        raise OSError(errno.EIO, "the library is cut short", str(library))
    return ctypes.CDLL(str(library))


def _extent(content: bytes) -> int:
    """The last byte that a program header of a 64-bit ELF file loads; 0 for anything else, which no system opens."""
    if len(content) < _ELF_HEADER.size or content[:6] != b"\x7fELF\x02\x01":
        return 0
    first, size, count = map(int, _ELF_HEADER.unpack_from(content))
    table = first + size * count
    if len(content) < table:
        return table
    segments = [_SEGMENT.unpack_from(content, first + size * number) for number in range(count)]
    return max([table, *(int(offset) + int(length) for offset, length in segments)])


_ELF_HEADER = struct.Struct("<32x Q 14x H H 6x")
"""Of a 64-bit file: offset, size and number of the program headers."""
_SEGMENT = struct.Struct("<8x Q 16x Q 16x")
"""A program header: offset and length in the file."""


def load_kernels(package: KernelPackage, target: str | Target, only: Collection[str]) -> dict[str, Kernel] | None:
    """The kernels of a package that are named, or None where one of them is not built; errors as `load_kernel`."""
    tried = {kernel.name: load_kernel(package, kernel, target) for kernel in package.kernels if kernel.name in only}
    found = {name: kernel for name, kernel in tried.items() if kernel is not None}
    return found if len(found) == len(tried) else None


def load_kernel(package: KernelPackage, kernel: KernelInstance, target: str | Target) -> Kernel | None:
    """One kernel, which may have another schedule than the package gives it, or None where it is not built.

    A library that cannot be opened counts as not built and is removed, once: it may have been built on another machine.

    Raises:
        OutputError: A kernel that was built anew cannot be opened either, or nothing can be opened where it lies.
        UnsupportedError: It is for an instruction set that this processor lacks.
    """
    machine = get_target(target)
    require_executable(machine)
    key = digest_with_schedule(package, kernel, machine)
    with _OPENING:
        entry = store.find(key)
        if entry is None:
            return None
        try:
            return _load(kernel, entry.library, machine)
        except OSError as error:
            if key in _REFUSED or _is_noexec(entry.library) or not store.discard(key):
                raise _cannot_open(entry.library, error) from error
            _REFUSED.add(key)
            return None


_OPENING = threading.Lock()
_REFUSED: set[str] = set()
"""Keys of the libraries that could not be opened by this process and were removed."""


def _is_noexec(library: Path) -> bool:
    """Whether the file system runs no programs, so that building again would not help."""
    try:
        return bool(os.statvfs(library).f_flag & os.ST_NOEXEC)
    except OSError:
        return False  # another process has removed it


def _cannot_open(library: Path, error: OSError) -> OutputError:
    what, allowed = "a compiled kernel could not be opened", "a folder that is not mounted noexec"
    hint = f"name another folder: {CACHE_VARIABLE}=DIR"
    return OutputError(explain(what, where=str(library), value=str(error), allowed=allowed, hint=hint))


@cache
def _load(instance: KernelInstance, library: Path, target: Target) -> Kernel:
    return Kernel(instance, library, target)
