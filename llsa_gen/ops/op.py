# SPDX-License-Identifier: Apache-2.0
"""One generated op by its name: found in the catalogue, in `generated/` or in a package of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llsa_gen import catalog, manifest, paths
from llsa_gen.codegen import render
from llsa_gen.errors import StaleError, explain
from llsa_gen.ops import registry
from llsa_gen.ops.autocast import at_autocast_dtype
from llsa_gen.ops.autograd import call
from llsa_gen.ops.checks import heads_first, list_widths, resolve_scale
from llsa_gen.spec import Spec


@dataclass(frozen=True)
class Op:
    """The op of one spec.

    Attributes:
        spec: What it computes.
        name: The slug: `torch.ops.llsa_gen.<name>` is its attention op.
        dtype: What its tensors hold.
    """

    spec: Spec
    name: str = field(init=False, repr=False)
    dtype: torch.dtype = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.spec.slug)
        object.__setattr__(self, "dtype", self.spec.element.torch)

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        scale: float | None = None,
        layout: str = "BHND",
        return_lse: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """LLSA of q [B,H,N,D], k and v [B,H,N,Dv]; see `llsa_gen.llsa_attention`."""
        return self._finish(self._torch_op(""), (q, k, v), (), scale, layout, return_lse)

    def select(self, q: Tensor, k: Tensor, *, layout: str = "BHND") -> tuple[Tensor, ...]:
        """The lists of every level; see `llsa_gen.llsa_select`."""
        q, k = at_autocast_dtype(*heads_first(layout, q=q, k=k), dtype=self.dtype)
        return tuple(call(self._torch_op("_select"), q, k))

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        idx: Sequence[Tensor],
        *,
        scale: float | None = None,
        layout: str = "BHND",
        return_lse: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attention with given lists; see `llsa_gen.llsa_attend`."""
        list_widths(idx)
        return self._finish(self._torch_op("_attend"), (q, k, v), (list(idx),), scale, layout, return_lse)

    def _torch_op(self, suffix: str) -> Any:
        return getattr(torch.ops.llsa_gen, self.name + suffix).default

    def _finish(
        self,
        op: Any,
        tensors: tuple[Tensor, ...],
        lists: tuple[list[Tensor], ...],
        scale: float | None,
        layout: str,
        return_lse: bool,
    ) -> Tensor | tuple[Tensor, Tensor]:
        q, k, v = heads_first(layout, q=tensors[0], k=tensors[1], v=tensors[2])
        q, k, v = at_autocast_dtype(q, k, v, dtype=self.dtype)
        tokens_first = layout == "BNHD"
        o, lse = call(op, q, k, v, *lists, resolve_scale(scale, self.spec.head_dim), tokens_first)
        o = o.transpose(1, 2) if tokens_first else o
        return (o, lse) if return_lse else o


def load(slug: str) -> Op:
    """One op by its name; registers `torch.ops.llsa_gen.<slug>`.

    Args:
        slug: A slug, such as ``llsa_l2_b16_k8_d64_bf16``, or a name of the catalogue.

    Raises:
        SpecError: No spec has this name; near names are listed.
        StaleError: The generated package of that name is not what would be generated now.
    """
    spec = catalog.find_spec(slug, search=(paths.catalogue_dir(),))
    folder = paths.catalogue_dir() / spec.slug
    return load_package(folder) if folder.is_dir() else _op(spec)


def load_package(directory: Path) -> Op:
    """The op of a generated package; what `import generated.<slug>` runs.

    Raises:
        StaleError: Its manifest is broken, or a file is not what would be generated now.
    """
    spec = Spec.from_fields(manifest.read(directory).spec)
    for name, text in render(spec).files.items():
        path = directory / name
        if not path.is_file() or path.read_bytes() != text.encode("utf-8"):
            what = "a generated file is not what this version of llsa-gen generates"
            hint = f"generate it again: llsa-gen build --spec {spec.slug} --out {directory.parent}"
            value = "other bytes" if path.is_file() else "no such file"
            allowed = "the bytes of this spec, as this version renders it"
            raise StaleError(explain(what, where=str(path), value=value, allowed=allowed, hint=hint))
    return _op(spec)


def _op(spec: Spec) -> Op:
    registry.register_spec(spec)
    return Op(spec)
