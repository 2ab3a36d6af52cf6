# SPDX-License-Identifier: Apache-2.0
"""What every template sees: names, parameters and strided tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llsa_gen.codegen.heading import heading
from llsa_gen.dtypes import get_dtype
from llsa_gen.ir.types import Stage
from llsa_gen.schedule.limits import tile_widths
from llsa_gen.spec import Spec


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel.

    Attributes:
        name: Its name in the kernel and in every call.
        type: ``handle`` (a pointer), ``int32`` or ``float32``.
        element: What a pointer points to: an expression of the generated file, as `View.dtype` is; empty for numbers.
    """

    name: str
    type: str
    element: str = ""

    @property
    def typed(self) -> str:
        """The parameter as a CPU kernel declares it: pointers say what they point to."""
        return f"{self.type}({self.element})" if self.element else self.type


INT32, FP32, DTYPE, OUT_DTYPE = '"int32"', '"float32"', "DTYPE", "OUT_DTYPE"
"""Types of elements, as expressions of a generated file; `DTYPE` and `OUT_DTYPE` are constants that it defines."""


@dataclass(frozen=True)
class View:
    """A strided tensor of the caller: strides are parameters in units of eight elements, the last one is 1.

    Attributes:
        name: Its parameter.
        shape: Extents of batch, row, head and feature.
        dtype: The type of its elements, an expression of the generated file.
    """

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


def attention_values(spec: Spec, stage: Stage) -> dict[str, Any]:
    """What every kernel that multiplies queries, keys and values sees."""
    head_tile, value_tile = tile_widths(spec.head_dim, spec.dim_v)
    return {
        "name": stage.factory,
        "template": stage.template,
        "heading": heading(spec, stage.template),
        "block": spec.block,
        "dtype": get_dtype(spec.dtype).tilelang_name,
        "head_dim": spec.head_dim,
        "head_tile": head_tile,
        "value_dim": spec.dim_v,
        "value_tile": value_tile,
    }


def parameters(pointers: Mapping[str, str], ints: Iterable[str], floats: Iterable[str] = ()) -> tuple[Parameter, ...]:
    """The parameters of a kernel, in order: pointers with the types of their elements, int32, float32."""
    return (
        *(Parameter(name, "handle", element) for name, element in pointers.items()),
        *(Parameter(name, "int32") for name in ints),
        *(Parameter(name, "float32") for name in floats),
    )


AXES = ("sb", "sn", "sh")
"""Suffixes of the stride parameters of a caller's tensor: batch, row, head."""


def strides(*names: str) -> tuple[str, ...]:
    """The stride parameters of some tensors of the caller."""
    return tuple(f"{name}_{axis}" for name in names for axis in AXES)
