# SPDX-License-Identifier: Apache-2.0
"""The element types: one row each, looked up by short name or by torch dtype."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llsa_gen.errors import InputTypeError, SpecError, did_you_mean, explain

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class DType:
    """One element type of q, k, v and o.

    Attributes:
        name: Short name in specs and slugs.
        torch_name: Attribute of the ``torch`` module.
        tilelang_name: Name in TileLang programs.
        itemsize: Bytes per element.
        unit_roundoff: Largest relative error of one rounding to nearest, 2**-(significand bits) with the
            implicit bit counted (IEEE 754-2019 table 3.5 for fp16 and fp32; bfloat16 keeps 8 bits).
    """

    name: str
    torch_name: str
    tilelang_name: str
    itemsize: int
    unit_roundoff: float

    @property
    def torch(self) -> torch.dtype:
        """The torch dtype; imports torch on first use."""
        import torch

        found = getattr(torch, self.torch_name)
        assert isinstance(found, torch.dtype)
        return found


_ROWS = (
    DType("fp32", torch_name="float32", tilelang_name="float32", itemsize=4, unit_roundoff=2.0**-24),
    DType("fp16", torch_name="float16", tilelang_name="float16", itemsize=2, unit_roundoff=2.0**-11),
    DType("bf16", torch_name="bfloat16", tilelang_name="bfloat16", itemsize=2, unit_roundoff=2.0**-8),
)

DTYPES: dict[str, DType] = {row.name: row for row in _ROWS}
DTYPE_NAMES: tuple[str, ...] = tuple(DTYPES)


def get_dtype(name: object) -> DType:
    """The row of a short name.

    Raises:
        SpecError: The name is not one of ``DTYPE_NAMES``.
    """
    if isinstance(name, str) and name in DTYPES:
        return DTYPES[name]
    where = "spec field dtype"
    raise SpecError(explain("unknown dtype", where=where, value=name, allowed=DTYPE_NAMES, hint=_suggest(name)))


def from_torch(dtype: torch.dtype, where: str | None = None) -> DType:
    """The row of a torch dtype; does not import torch.

    Raises:
        InputTypeError: There are no kernels for the dtype.
    """
    for row in _ROWS:
        if str(dtype) == f"torch.{row.torch_name}":
            return row
    allowed = [f"torch.{row.torch_name}" for row in _ROWS]
    hint = "convert q, k and v with .to(...) first"
    what = "there are no kernels for this dtype"
    raise InputTypeError(explain(what, where=where, value=dtype, allowed=allowed, hint=hint))


def _suggest(name: object) -> str:
    """The short name behind a long one such as ``float32`` or ``torch.float32``."""
    text = str(name).removeprefix("torch.").lower()
    aliases = {"float": "fp32", "single": "fp32", "half": "fp16", "f32": "fp32", "f16": "fp16", "brain": "bf16"}
    aliases |= {row.torch_name: row.name for row in _ROWS}
    if text in aliases:
        return f"did you mean {aliases[text]!r}?"
    return did_you_mean(text, DTYPE_NAMES) or f"write one of the short names, for example dtype={DTYPE_NAMES[0]!r}"
