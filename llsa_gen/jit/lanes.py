# SPDX-License-Identifier: Apache-2.0
"""The few words in which the CPU kernels are spoken: vector lanes, register tiles and exponentials.

A CPU kernel computes one tile of one head per call. In products with what moves past the tile its members (queries, or
keys) are the vector lanes; in sums of weighted rows the features are.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import DataType
from tvm.script import tirx as T

from llsa_gen.jit.isa import LINE_BYTES
from llsa_gen.jit.isa import Lanes as Lanes  # noqa: PLC0414  # generated kernels take it from here

STRIDE_UNIT = 8  # strides of a caller's tensors reach a kernel in units of 8 elements
NO_NODE = -float("inf")
LOG2_E = 1.4426950408889634
LN_2 = 0.6931471805599453

_EXP2 = (0.00015353362, 0.00133988739, 0.00961843692, 0.0555033237, 0.240226477, 0.693147182, 1.0)
"""Polynomial of 2**r over [-1/2, 1/2] with the least relative error, highest power first, exact at 0; computed in fp32
the relative error is below 8e-8, and below 1.1e-7 without fused products."""
_LOWEST_EXPONENT = -126.0
_SHIFT = 1.5 * 2**23 + 126
"""A sum with it is a whole number to fp32; its lowest bits are the rounded summand, biased like the exponent of half of
2**summand: 0, which makes a 0, for the lowest one."""


def number(value: float) -> Any:
    """A constant in fp32."""
    return T.float32(value)


def wide(x: Any) -> Any:
    """A number of any type in fp32."""
    return x if x.dtype == "float32" else T.Cast("float32", x)


def narrow(x: Any, view: Any) -> Any:
    """A number in fp32 as an element of a view: the nearest, of two the even one.

    TVM's own cast to bfloat16 makes zeros of some NaN; here they stay NaN.
    """
    if view.dtype != "bfloat16":
        return x if view.dtype == "float32" else T.Cast(view.dtype, x)
    bits = T.reinterpret("uint32", x)
    high, low_bits = bits >> T.uint32(16), T.uint32(0x7FFF)
    nearest = (bits + low_bits + (high & T.uint32(1))) >> T.uint32(16)
    is_nan = (bits & T.uint32(0x7FFFFFFF)) > T.uint32(0x7F800000)  # TVM holds x != x to be false
    return T.reinterpret("bfloat16", T.Cast("uint16", T.Select(is_nan, high | T.uint32(_QUIET), nearest)))


_QUIET = 0x40
"""The bit of a bfloat16 NaN that says that it is quiet: the others alone may be those of an infinity."""


def line_of(view: Any) -> int:
    """Elements of a view in a cache line."""
    return LINE_BYTES // int(DataType(view.dtype).itemsize)


def bits_of(view: Any) -> str:
    """The type of the bits of a view's elements; TVM knows no addresses of numbers in bfloat16."""
    return "uint16" if view.dtype == "bfloat16" else str(view.dtype)


def prefetch_line(view: Any, row: Any, line: int) -> Any:
    """Prefetches a cache line of a row of a view, counted from its start; one that does not exist is no error."""
    reads, into_every_cache, data = 0, 3, 1
    return T.call_intrin(
        "void", "tirx.prefetch", T.address_of(view[row, line * line_of(view)]), reads, into_every_cache, data
    )


def strides_of(*extents: Any) -> Any:
    """Strides of a contiguous tensor; places in it are counted in 64 bits."""
    found: list[Any] = [1]
    for extent in reversed(extents[1:]):
        found.insert(0, T.int64(found[0]) * extent)
    return tuple(found)


def exp2(x: Any) -> Any:
    """2**x for x < 128; 0 where x is -125.5 or less, and NaN of NaN. No result is denormal: those are slow to make."""
    held = larger(number(_LOWEST_EXPONENT), x)
    shifted = T.reinterpret("int32", held + number(_SHIFT))
    rest = held - (T.reinterpret("float32", shifted) - number(_SHIFT))
    power = number(2 * _EXP2[0])
    for coefficient in _EXP2[1:]:
        power = power * rest + number(2 * coefficient)
    return power * T.reinterpret("float32", shifted << 23)


_LOG2 = tuple(2 / math.log(2) / power for power in (9, 7, 5, 3, 1))
"""log2((1 + s) / (1 - s)) / s as a series of powers of s**2, highest first."""
_ROOT_BITS = 0x3F3504F3
"""sqrt(1/2) in fp32."""


def log2(x: Any) -> Any:
    """log2 of a normal number above 0, with a relative error below 2.4e-7; others, and NaN, come back as they are.

    The number is 2**exponent * (1 + s) / (1 - s) with |s| < 0.172, so that the series needs few terms.
    """
    bits = T.reinterpret("int32", x)
    exponent = (bits - T.int32(_ROOT_BITS)) >> 23
    rest = T.reinterpret("float32", bits - (exponent << 23)) - number(1.0)
    s = rest / (rest + number(2.0))
    series = number(_LOG2[0])
    for coefficient in _LOG2[1:]:
        series = series * (s * s) + number(coefficient)
    return T.Select(x > number(0.0), T.Cast("float32", exponent) + s * series, x)


def share_of(x: Any) -> Any:
    """2**x of the logarithm of a share, which is 1 at most; NaN of NaN.

    The logarithm is a difference of two numbers that were rounded. Where they are in the millions it may come out far
    above 0, and beyond the range of `exp2`.
    """
    return exp2(T.Select(x > number(0.0), number(0.0), x))


def larger(x: Any, y: Any) -> Any:
    """The larger of two numbers; y where x is NaN."""
    return T.Select(x > y, x, y)
