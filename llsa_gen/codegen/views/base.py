# SPDX-License-Identifier: Apache-2.0
"""What every template sees: names, parameters and strided tensors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel.

    Attributes:
        name: Its name in the kernel and in every call.
        type: ``handle`` (a pointer), ``int32`` or ``float32``.
    """

    name: str
    type: str

    @property
    def typed(self) -> str:
        """The parameter as a CPU kernel declares it: pointers say what they point to."""
        if self.type != "handle":
            return self.type
        return f'handle("{"int32" if self.name.startswith(INTEGERS) else "float32"}")'


INTEGERS = ("idx", "parents", "counts", "offsets", "rows", "takers", "part_offsets", "part_nodes")
"""What the names of tensors of int32 begin with."""


@dataclass(frozen=True)
class View:
    """A strided tensor of the caller: strides are parameters in units of eight elements, the last one is 1."""

    name: str
    shape: tuple[str, ...]
    dtype: str

    @property
    def rows(self) -> str:
        """How many rows a head has."""
        return self.shape[1]

    @property
    def width(self) -> str:
        """How many columns a row has."""
        return self.shape[3]

    @property
    def strides(self) -> tuple[str, ...]:
        """The parameters that hold the strides of the batch, row and head axes."""
        return strides(self.name)


@dataclass(frozen=True)
class KernelView:
    """The values of one generated file."""

    name: str
    template: str
    heading: str
    summary: str
    parameters: tuple[Parameter, ...]
    block: int
    dtype: str
    head_dim: int = 0
    head_tile: int = 0


def parameters(pointers: Iterable[str], ints: Iterable[str], floats: Iterable[str] = ()) -> tuple[Parameter, ...]:
    """The parameters of a kernel, in order: pointers, int32, float32."""
    return (
        *(Parameter(name, "handle") for name in pointers),
        *(Parameter(name, "int32") for name in ints),
        *(Parameter(name, "float32") for name in floats),
    )


AXES = ("sb", "sn", "sh")
"""Suffixes of the stride parameters of a caller's tensor: batch, row, head."""


def strides(*names: str) -> tuple[str, ...]:
    """The stride parameters of some tensors of the caller."""
    return tuple(f"{name}_{axis}" for name in names for axis in AXES)
